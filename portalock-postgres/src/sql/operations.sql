-- The operations of a client: each is one statement.

-- Makes one attempt for an owner. It never waits until the lock is free, and it finds what an earlier attempt has left.
--
-- Returns `outcome`:
--   granted  with the token
--   queued   a place is kept; with one of the holders, and the milliseconds after which the owners ahead could be dead
--   refused  nothing is kept; with one of the holders
--   ended    the session is dead
--   stale    the attempt names another epoch than the session's, which `token` contains: nothing was done
CREATE OR REPLACE FUNCTION portalock.acquire(
    _session text, _epoch bigint, _kind text, _name text, _owner text, _weight bigint, _capacity bigint, _queue boolean,
    _who text, OUT outcome text, OUT token bigint, OUT who text, OUT since bigint, OUT look_in bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known bigint;
    own portalock.claims;
    may_have_granted boolean := false;
BEGIN
    PERFORM portalock.lock_name(_kind, _name);
    SELECT s.epoch INTO known FROM portalock.sessions s WHERE s.id = _session AND s.expires > clock_timestamp();
    IF NOT FOUND THEN
        outcome := 'ended';
        RETURN;
    END IF;
    IF known <> _epoch THEN
        outcome := 'stale';
        token := known;
        RETURN;
    END IF;

    SELECT * INTO own FROM portalock.claims c WHERE c.owner = _owner;
    IF own.session <> _session THEN
        -- The claim is from an earlier session of the same client.
        DELETE FROM portalock.claims c WHERE c.owner = _owner;
        own := NULL;
        PERFORM portalock.serve(_kind, _name, NULL);
        may_have_granted := true;
    END IF;
    IF own.place IS NOT NULL THEN
        -- The function that made room has already served the queue. It is served again in case a person changed the
        -- rows.
        PERFORM portalock.serve(_kind, _name, _owner);
        SELECT * INTO own FROM portalock.claims c WHERE c.owner = _owner;
    END IF;
    IF own.token IS NOT NULL THEN
        outcome := 'granted';
        token := own.token;
        RETURN;
    END IF;

    IF own.owner IS NULL AND portalock.is_free(_kind, _name, _weight, _capacity) THEN
        outcome := 'granted';
    ELSE
        look_in := portalock.look_in(_kind, _name, _session);
        IF look_in = 0 THEN
            -- An owner ahead is dead.
            PERFORM portalock.bury_holders(_kind, _name);
            PERFORM portalock.serve(_kind, _name, NULL);
            may_have_granted := true;
            IF own.owner IS NULL AND portalock.is_free(_kind, _name, _weight, _capacity) THEN
                outcome := 'granted';
            END IF;
        END IF;
    END IF;
    IF outcome = 'granted' THEN
        look_in := NULL;
        token := portalock.next_token(_kind, _name);
        INSERT INTO portalock.claims (owner, session, kind, name, weight, capacity, token, since, who)
        VALUES (_owner, _session, _kind, _name, _weight, _capacity, token, clock_timestamp(), _who);
        PERFORM portalock.tell(_kind, _name);
        RETURN;
    END IF;

    SELECT h.who, (extract(epoch FROM h.since) * 1000000)::bigint INTO who, since
    FROM portalock.claims h WHERE h.name = _name AND h.kind = _kind AND h.place IS NULL LIMIT 1;
    IF own.owner IS NULL AND NOT _queue THEN
        outcome := 'refused';
        look_in := NULL;
        RETURN;
    END IF;
    outcome := 'queued';
    IF own.owner IS NULL THEN
        IF NOT may_have_granted THEN
            -- Don't wait for the disk: if a crash of the server loses the place, the client takes a new one. The grant
            -- of the place is written to the log later, and that write is waited for.
            PERFORM set_config('synchronous_commit', 'off', true);
        END IF;
        INSERT INTO portalock.claims (owner, session, kind, name, weight, capacity, place, since, who)
        VALUES (_owner, _session, _kind, _name, _weight, _capacity, nextval('portalock.places'), clock_timestamp(), _who);
    END IF;
END $$;

-- Ends the owner's hold or removes it from the queue, and serves the queue. Affects no other claim, and does nothing if
-- the owner has none.
--
-- `_for_good` is for an owner whose attempt may still arrive: it changes the session's epoch, so that a late attempt
-- does nothing. Returns the new epoch; NULL if it did not change, or if the session is dead and no attempt can have an
-- effect.
CREATE OR REPLACE FUNCTION portalock.release(
    _session text, _kind text, _name text, _owner text, _for_good boolean, OUT freed boolean, OUT epoch bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM portalock.lock_name(_kind, _name);
    DELETE FROM portalock.claims c
    WHERE c.owner = _owner AND c.session = _session AND c.name = _name AND c.kind = _kind
    RETURNING c.token IS NOT NULL INTO freed;
    IF FOUND THEN
        PERFORM portalock.serve(_kind, _name, NULL);
    END IF;
    freed := coalesce(freed, false);
    IF _for_good THEN
        UPDATE portalock.sessions s SET epoch = s.epoch + 1 WHERE s.id = _session RETURNING s.epoch INTO epoch;
    END IF;
END $$;

-- The holders and the waiters, in the order of their grants and of their places, and the last token. Leaves out dead
-- owners.
CREATE OR REPLACE FUNCTION portalock.inspect(_kind text, _name text)
RETURNS TABLE (state text, owner text, weight bigint, token bigint, since bigint, who text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT 'last', NULL, NULL::bigint, t.token, NULL::bigint, NULL
        FROM portalock.tokens t WHERE t.name = _name AND t.kind = _kind;
    RETURN QUERY SELECT CASE WHEN c.place IS NULL THEN 'holds' ELSE 'waits' END, portalock.owner_of(c.owner), c.weight, c.token,
            (extract(epoch FROM c.since) * 1000000)::bigint, c.who
        FROM portalock.claims c JOIN portalock.sessions s ON s.id = c.session AND s.expires > clock_timestamp()
        WHERE c.name = _name AND c.kind = _kind
        ORDER BY c.place NULLS FIRST, c.token;
END $$;

-- The names of the locks that have holders or waiters.
CREATE OR REPLACE FUNCTION portalock.names() RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT c.name
        FROM portalock.claims c JOIN portalock.sessions s ON s.id = c.session AND s.expires > clock_timestamp()
        WHERE c.kind = 'lock';
END $$;
