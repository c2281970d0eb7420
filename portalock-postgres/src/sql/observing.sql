-- Observers: clients that are told who holds a name exclusively, change by change.

-- Tells those who observe a name who holds it now, if anybody observes it: by a message to each one's session. Called under
-- `lock_name` by whatever may have changed it, so the messages come in the order of the changes.
CREATE OR REPLACE FUNCTION portalock.tell(_kind text, _name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    state text;
BEGIN
    PERFORM FROM portalock.observers o WHERE o.name = _name AND o.kind = _kind LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    state := portalock.state_of(_kind, _name);
    PERFORM pg_notify('portalock_' || o.session, 'holder ' || o.id || state)
    FROM portalock.observers o WHERE o.name = _name AND o.kind = _kind;
END $$;

-- Who holds exclusively and lives, as a message says it: owner, token, since and who; nothing if nobody does. A message is at most
-- 8000 bytes long: of a holder with more to say of itself, its name is left out.
CREATE OR REPLACE FUNCTION portalock.state_of(_kind text, _name text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    state text;
BEGIN
    SELECT ' ' || portalock.owner_of(c.owner) || ' ' || c.token || ' ' || (extract(epoch FROM c.since) * 1000000)::bigint || ' '
        || CASE WHEN octet_length(c.who) < 7000 THEN c.who ELSE '{"host":"?","pid":0}' END
    INTO state
    FROM portalock.claims c JOIN portalock.sessions s ON s.id = c.session AND s.expires > clock_timestamp()
    WHERE c.name = _name AND c.kind = _kind AND c.place IS NULL AND c.weight = c.capacity;
    RETURN coalesce(state, '');
END $$;

-- From now on this session is told, under this number, and first of the present state. Answers false if the session is over.
CREATE OR REPLACE FUNCTION portalock.observe(_session text, _id bigint, _kind text, _name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM portalock.lock_name(_kind, _name);
    PERFORM FROM portalock.sessions s WHERE s.id = _session AND s.expires > clock_timestamp() FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO portalock.observers (session, id, kind, name) VALUES (_session, _id, _kind, _name) ON CONFLICT DO NOTHING;
    PERFORM pg_notify('portalock_' || _session, 'holder ' || _id || portalock.state_of(_kind, _name));
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION portalock.stop_observing(_session text, _id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM portalock.observers o WHERE o.session = _session AND o.id = _id;
END $$;
