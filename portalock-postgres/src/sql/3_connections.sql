-- Version 3: sessions that end with their connection. A clock that is set back no longer extends a lease; that part
-- changes functions only.

-- The server process with which the session ends. NULL for a session that outlives its connection.
ALTER TABLE portalock.sessions ADD COLUMN backend integer;
-- This function has one more parameter than before.
DROP FUNCTION IF EXISTS portalock.open_session(text, bigint, text[]);
