-- Where locks lie, version 1.
--
-- sessions  one row for each client that lives: its secret id and until when it lives. A client without a row is dead.
-- claims    one row for each request that is held or waits. A claim of a dead session counts for nothing.
-- tokens    the last fencing token of each name.
--
-- Everything that is done to the claims of a name is done under the advisory lock of that name, which lasts for one statement:
-- see `lock_name`. A session is killed by deleting its row, under the row's lock: see `is_dead`.

CREATE SCHEMA portalock;
COMMENT ON SCHEMA portalock IS 'Locks and semaphores, see https://docs.rs/portalock-postgres';

CREATE TABLE portalock.sessions (
    -- 128 random bits. Whoever knows it may act for the session; it names the channel of its grants, too.
    id text COLLATE "C" PRIMARY KEY,
    lease interval NOT NULL,
    expires timestamptz NOT NULL,
    -- Every attempt says which one it knows, and fails if it is not this one. So an attempt whose answer never came can be
    -- made to fail, should it arrive yet: see `release`.
    epoch bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE portalock.claims (
    owner text COLLATE "C" PRIMARY KEY,
    session text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('lock', 'semaphore')),
    name text COLLATE "C" NOT NULL,
    -- Granted if it fits, with the weights of all holders, under its own capacity and that of every holder.
    weight bigint NOT NULL CHECK (weight > 0),
    capacity bigint NOT NULL CHECK (capacity >= weight),
    -- Where it waits: the smallest is next. NULL once it is granted.
    place bigint,
    -- The fencing token of the grant. NULL while it waits.
    token bigint,
    since timestamptz NOT NULL,
    -- Whose it is, for people: a JSON object.
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

-- What `ensure_held` has promised to look at again when its transaction commits. Empty but for transactions under way.
CREATE UNLOGGED TABLE portalock.fences (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    token bigint NOT NULL
);
