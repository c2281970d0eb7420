-- The tables, version 1.
--
-- sessions  one row for each living client: its secret id and the end of its lease. A client without a row is dead.
-- claims    one row for each request that holds or waits. A claim of a dead session has no effect.
-- tokens    the last fencing token of each name.
--
-- Every change to the claims of a name is made under the advisory lock of that name, which one statement holds: see
-- `lock_name`. A session is killed by deleting its row, under the row's lock: see `is_dead`.

CREATE SCHEMA portalock;
COMMENT ON SCHEMA portalock IS 'Locks and semaphores, see https://docs.rs/portalock-postgres';

CREATE TABLE portalock.sessions (
    -- 128 random bits. Anyone who knows it can act for the session. It is also part of the name of the session's
    -- channel.
    id text COLLATE "C" PRIMARY KEY,
    lease interval NOT NULL,
    expires timestamptz NOT NULL,
    -- Every attempt names the epoch that it knows, and fails if the session has another one. So an attempt that got no
    -- answer can be made to fail if it arrives later: see `release`.
    epoch bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE portalock.claims (
    owner text COLLATE "C" PRIMARY KEY,
    session text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('lock', 'semaphore')),
    name text COLLATE "C" NOT NULL,
    -- A claim is granted if its weight and those of all holders fit under its own capacity and that of every holder.
    weight bigint NOT NULL CHECK (weight > 0),
    capacity bigint NOT NULL CHECK (capacity >= weight),
    -- The place in the queue: the smallest is next. NULL if the claim is granted.
    place bigint,
    -- The fencing token of the grant. NULL while the claim waits.
    token bigint,
    since timestamptz NOT NULL,
    -- The holder, for people: a JSON object.
    who text NOT NULL,
    CHECK ((place IS NULL) <> (token IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX claims_queue ON portalock.claims (name, kind, place);
CREATE INDEX claims_session ON portalock.claims (session);

CREATE SEQUENCE portalock.places;

CREATE TABLE portalock.tokens (
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    token bigint NOT NULL,
    PRIMARY KEY (name, kind)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The checks that `ensure_held` must repeat when its transaction commits. Empty except for running transactions.
CREATE UNLOGGED TABLE portalock.fences (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    token bigint NOT NULL
);
