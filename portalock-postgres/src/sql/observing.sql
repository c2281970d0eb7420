-- Observers: clients that are told of each change of a name's exclusive holder.

-- Notifies the sessions of a name's observers, if there are any, of the current holder. Every function that may have
-- changed the holder calls this under `lock_name`, so the messages come in the order of the changes.
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

-- The living exclusive holder, as a message contains it: owner, token, start time and holder; empty if there is none. A
-- message has at most 8000 bytes, so the description of a holder is left out if it is too long. An owner that no client of this
-- crate has must not be taken for more than an owner.
CREATE OR REPLACE FUNCTION portalock.state_of(_kind text, _name text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    state text;
BEGIN
    SELECT ' ' || left(replace(portalock.owner_of(n.owner), ' ', '_'), 100) || ' ' || n.token || ' ' || (extract(epoch FROM n.since) * 1000000)::bigint || ' '
        || CASE WHEN octet_length(n.who) < 7000 THEN n.who ELSE '{"host":"?","pid":0}' END
    INTO state
    FROM portalock.names n JOIN portalock.sessions s ON s.id = n.session AND s.expires > clock_timestamp()
    WHERE n.name = _name AND n.kind = _kind AND n.owner IS NOT NULL;
    RETURN coalesce(state, '');
END $$;

-- Adds an observer with this number to the session. Its first message is the current state. Returns false if the
-- session is over.
CREATE OR REPLACE FUNCTION portalock.observe(_session text, _id bigint, _kind text, _name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM portalock.lock_name(_name);
    PERFORM FROM portalock.sessions s WHERE s.id = _session AND s.expires > clock_timestamp() FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO portalock.observers (session, id, kind, name) VALUES (_session, _id, _kind, _name) ON CONFLICT DO NOTHING;
    PERFORM portalock.is_now_busy(_kind, _name);
    PERFORM pg_notify('portalock_' || _session, 'holder ' || _id || portalock.state_of(_kind, _name));
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION portalock.stop_observing(_session text, _id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM portalock.observers o WHERE o.session = _session AND o.id = _id;
END $$;
