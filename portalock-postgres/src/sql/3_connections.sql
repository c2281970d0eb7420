-- Version 3: sessions that end with their connection. And a clock that was set back makes no lease longer: functions only.

-- The server process whose end is the session's, too. NULL for a session that outlives its connection.
ALTER TABLE portalock.sessions ADD COLUMN backend integer;
-- This is told more than before.
DROP FUNCTION IF EXISTS portalock.open_session(text, bigint, text[]);
