-- Version 2: for operators. Locks can be broken, and the holder of a name can be watched.

-- Who broke the lock, for people: a JSON object. Stays until the claim is released.
ALTER TABLE portalock.claims ADD COLUMN broken_by text;
-- For the marks that each renewal reads.
CREATE INDEX claims_broken ON portalock.claims (session) WHERE broken_by IS NOT NULL;

-- These functions return more columns than before, which CREATE OR REPLACE can't change.
DROP FUNCTION IF EXISTS portalock.inspect(text, text);
DROP FUNCTION IF EXISTS portalock.renew(text);

-- The observers: each is told of every change of a name's exclusive holder. A session numbers its observers.
CREATE TABLE portalock.observers (
    session text COLLATE "C" NOT NULL REFERENCES portalock.sessions ON DELETE CASCADE,
    id bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (session, id)
);
CREATE INDEX observers_name ON portalock.observers (name, kind);
