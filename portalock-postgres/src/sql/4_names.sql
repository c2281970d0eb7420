-- Version 4: a lock that nobody else wants is one row.
--
-- names   one row for each name: its last fencing token, and the claim that holds the whole name, if there is one.
-- queue   the other claims: those that wait, and those that hold a part of a name.
-- claims  a view of all claims.
-- marks   one row for each broken claim.
--
-- An acquisition that finds the name free changes the row of the name, and the release changes it back. Nothing of that is
-- in an index, so Postgres writes only the new version of the row.

-- All tables at once, in the order in which most functions use them. If each was locked where it is changed, almost every
-- attempt beside busy clients would end in a deadlock with a client that already uses another of them.
LOCK TABLE portalock.sessions, portalock.claims, portalock.tokens, portalock.fences;

ALTER TABLE portalock.tokens RENAME TO names;
ALTER INDEX portalock.tokens_pkey RENAME TO names_pkey;
ALTER TABLE portalock.claims RENAME TO queue;
ALTER INDEX portalock.claims_pkey RENAME TO queue_pkey;
ALTER INDEX portalock.claims_queue RENAME TO queue_place;
ALTER INDEX portalock.claims_session RENAME TO queue_session;
ALTER TABLE portalock.names
    -- False if the name certainly has no row in `queue`, no observer and no mark.
    ADD COLUMN busy boolean NOT NULL DEFAULT true,
    -- The claim that holds the whole name, as in `queue`. NULL if there is none; then the columns after it mean nothing.
    -- No index may contain these columns: it would have to change with each acquisition.
    ADD COLUMN owner text COLLATE "C",
    ADD COLUMN session text COLLATE "C",
    ADD COLUMN weight bigint,
    ADD COLUMN since timestamptz,
    ADD COLUMN who text;
UPDATE portalock.names n SET (owner, session, weight, since, who) = (
    SELECT c.owner, c.session, c.weight, c.since, c.who FROM portalock.queue c
    WHERE c.name = n.name AND c.kind = n.kind AND c.place IS NULL AND c.weight = c.capacity);

-- Who broke a claim, for people: a JSON object. The mark stays until the claim is released.
CREATE TABLE portalock.marks (
    owner text COLLATE "C" NOT NULL,
    session text COLLATE "C" NOT NULL REFERENCES portalock.sessions ON DELETE CASCADE,
    broken_by text NOT NULL,
    PRIMARY KEY (owner, session)
);
CREATE INDEX marks_session ON portalock.marks (session);
INSERT INTO portalock.marks (owner, session, broken_by)
    SELECT c.owner, c.session, c.broken_by FROM portalock.queue c JOIN portalock.sessions s ON s.id = c.session
    WHERE c.broken_by IS NOT NULL;

DELETE FROM portalock.queue c USING portalock.names n WHERE n.owner = c.owner;
-- The owners of two sessions may have the same name: everybody can know the names, and nobody may take one from another session.
-- And Postgres reads the text of each check anew for each row that is written.
ALTER TABLE portalock.queue DROP CONSTRAINT queue_pkey, ADD CONSTRAINT queue_pkey PRIMARY KEY (owner, session),
    DROP COLUMN broken_by, DROP CONSTRAINT claims_kind_check, DROP CONSTRAINT claims_weight_check, DROP CONSTRAINT claims_check,
    DROP CONSTRAINT claims_check1;

CREATE VIEW portalock.claims AS
    SELECT n.kind, n.name, n.owner, n.session, n.weight, n.weight AS capacity, NULL::bigint AS place, n.token, n.since, n.who
    FROM portalock.names n WHERE n.owner IS NOT NULL
    UNION ALL
    SELECT c.kind, c.name, c.owner, c.session, c.weight, c.capacity, c.place, c.token, c.since, c.who FROM portalock.queue c;

-- These functions have other parameters or results than before, and `hold` does what the last one did.
DROP FUNCTION IF EXISTS portalock.look(text, text[]), portalock.clean(), portalock.lock_name(text, text),
    portalock.try_lock_name(text, text), portalock.release(text, text, text, text, boolean),
    portalock.acquire(text, bigint, text, text, text, bigint, bigint, boolean, text), portalock.next_token(text, text);
-- This one read the claims of all names, which no index has any more.
DROP FUNCTION IF EXISTS portalock.bury(text, integer);
