-- Version 2: for operators. Locks can be broken, and who holds a name can be watched.

-- Who breaks the lock, for people: a JSON object. Stays until the claim is released.
ALTER TABLE portalock.claims ADD COLUMN broken_by text;
-- A renewal looks for them.
CREATE INDEX claims_broken ON portalock.claims (session) WHERE broken_by IS NOT NULL;

-- These answer more than before, which no replacement can change.
DROP FUNCTION IF EXISTS portalock.inspect(text, text);
DROP FUNCTION IF EXISTS portalock.renew(text);

-- Who is told of each change of a name's exclusive holder: an observer of a session, by its number there.
CREATE TABLE portalock.observers (
    session text COLLATE "C" NOT NULL REFERENCES portalock.sessions ON DELETE CASCADE,
    id bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (session, id)
);
CREATE INDEX observers_name ON portalock.observers (name, kind);
