-- A session: its row, its renewals, and the periodic check of its waiting claims.

-- The version of this schema, which a client reads first.
CREATE OR REPLACE FUNCTION portalock.version() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 5';

-- Starts a session, and ends those that its client has given up. A session that is `_tied` ends with the connection
-- that starts it.
CREATE OR REPLACE FUNCTION portalock.open_session(_session text, _lease_ms bigint, _former text[], _tied boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lease interval := make_interval(secs => _lease_ms / 1000.0);
BEGIN
    -- Others use these values: the session is part of the name of a channel, and they add the lease to the time of the clock.
    IF octet_length(_session) > 50 OR _lease_ms > 31536000000 THEN
        RAISE EXCEPTION 'the session is longer than 50 bytes, or its lease than a year' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM portalock.sessions s WHERE s.id = ANY (_former);
    INSERT INTO portalock.sessions (id, lease, expires, backend)
    VALUES (_session, lease, clock_timestamp() + lease, CASE WHEN _tied THEN pg_backend_pid() END);
END $$;

-- Renews a session. Returns whether the session lives, and which server process was called: if the calls of a client
-- reach several processes, it is behind a pooler and receives no grants. Also returns which of its claims were broken,
-- and by whom; this is read after the session's time was extended, see `break_claim`.
CREATE OR REPLACE FUNCTION portalock.renew(
    _session text, OUT alive boolean, OUT backend integer, OUT broken text[], OUT broken_by text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- An expired session stays expired, even if no other session has acted on it yet, because its client has given it
    -- up by its own clock. A session that ends with its connection is not renewed over another connection.
    UPDATE portalock.sessions s SET expires = clock_timestamp() + s.lease
    WHERE s.id = _session AND s.expires > clock_timestamp() AND coalesce(s.backend = pg_backend_pid(), true);
    alive := FOUND;
    backend := pg_backend_pid();
    SELECT array_agg(m.owner), array_agg(m.broken_by) INTO broken, broken_by
    FROM portalock.marks m WHERE m.session = _session;
END $$;

-- The time in milliseconds after which an owner at the front of a name (a holder or the next waiter) could be dead, so
-- that the queue can be served. 0 if the queue must be served now; NULL if all of these owners belong to `_session`.
-- The end of a session that ends with its connection can't be predicted, so it is checked every 200 ms.
CREATE OR REPLACE FUNCTION portalock.look_in(_kind text, _name text, _session text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    next portalock.queue;
    used bigint;
    smallest bigint;
    first timestamptz;
    set_back boolean;
BEGIN
    SELECT * INTO next FROM portalock.queue w
    WHERE w.name = _name AND w.kind = _kind AND w.place IS NOT NULL
    ORDER BY w.place LIMIT 1;
    SELECT sum(front.weight), min(front.capacity), min(CASE
            WHEN s.id IS NULL OR portalock.is_cut(s.backend) THEN '-infinity'
            WHEN s.backend IS NULL THEN least(s.expires, clock_timestamp() + s.lease)
            ELSE least(s.expires, clock_timestamp() + interval '200 milliseconds')
        END) FILTER (WHERE front.session <> _session),
        bool_or(s.expires > clock_timestamp() + s.lease) FILTER (WHERE front.session <> _session)
    INTO used, smallest, first, set_back FROM (
        SELECT h.session, h.weight, h.capacity FROM portalock.claims h
        WHERE h.name = _name AND h.kind = _kind AND h.place IS NULL
        UNION ALL
        SELECT next.session, NULL, NULL WHERE next.session IS NOT NULL
    ) front LEFT JOIN portalock.sessions s ON s.id = front.session;
    IF next.owner IS NOT NULL AND (used IS NULL OR used <= least(next.capacity, smallest) - next.weight) THEN
        -- A person has deleted a holder's row.
        RETURN 0;
    END IF;
    IF first IS NULL THEN
        RETURN NULL;
    END IF;
    IF set_back THEN
        -- The clock was set back. A session that died before would keep its locks longer by that difference. No lease
        -- can last longer than its full time from now.
        UPDATE portalock.sessions s SET expires = clock_timestamp() + s.lease WHERE s.id IN (
            SELECT e.id FROM portalock.sessions e WHERE e.expires > clock_timestamp() + e.lease FOR UPDATE SKIP LOCKED);
    END IF;
    RETURN greatest(0, ceil(extract(epoch FROM greatest(first, now()) - clock_timestamp()) * 1000))::bigint;
END $$;

-- The periodic check of a session. It serves the names that the session waits for or observes, if an owner ahead has
-- died. Returns which of `_owners`, of these names, have a claim in the session, with their tokens if they hold, and in how
-- many milliseconds to check again.
CREATE OR REPLACE FUNCTION portalock.look(
    _session text, _owners text[], _kinds text[], _names text[], OUT owners text[], OUT tokens bigint[], OUT again_in bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waits record;
    dies_in bigint;
    served integer := 0;
BEGIN
    -- If the server's queue of notifications was full, it stays full when everybody has read it, and nothing can be passed on:
    -- only a notification that has room frees what was read, or this function.
    PERFORM pg_notification_queue_usage();
    FOR waits IN
        SELECT c.kind, c.name FROM portalock.queue c WHERE c.session = _session AND c.place IS NOT NULL
        UNION SELECT o.kind, o.name FROM portalock.observers o WHERE o.session = _session
    LOOP
        dies_in := portalock.look_in(waits.kind, waits.name, _session);
        IF dies_in = 0 THEN
            -- A transaction that has locked the name also finds the dead owners. The number of names is limited because
            -- each one takes a lock in the server's lock table.
            IF served < 100 AND portalock.try_lock_name(waits.name) THEN
                PERFORM portalock.bury_holders(waits.kind, waits.name);
                PERFORM portalock.serve(waits.kind, waits.name, NULL);
                served := served + 1;
            END IF;
            dies_in := 100;
        END IF;
        again_in := least(again_in, dies_in);
    END LOOP;
    SELECT c.owners, c.tokens INTO owners, tokens FROM portalock.claims_of(_session, _owners, _kinds, _names) c;
END $$;

-- As `look`, but only reads these claims: `look` reads all names that the session waits for at each call.
CREATE OR REPLACE FUNCTION portalock.claims_of(
    _session text, _owners text[], _kinds text[], _names text[], OUT owners text[], OUT tokens bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A join with the view would read all names.
    SELECT array_agg(asked.owner), array_agg(found.token) INTO owners, tokens
    FROM unnest(_owners, _kinds, _names) AS asked (owner, kind, name) CROSS JOIN LATERAL (
        SELECT n.token FROM portalock.names n
        WHERE n.name = asked.name AND n.kind = asked.kind AND n.owner = asked.owner AND n.session = _session
        UNION ALL
        SELECT c.token FROM portalock.queue c WHERE c.owner = asked.owner AND c.session = _session
    ) found;
END $$;

-- All claims of a session. Reads all names, because no index contains their holders. If another call is running, returns one row of
-- NULLs: all sessions reconnect when the server is back, and their calls must not delay their renewals.
CREATE OR REPLACE FUNCTION portalock.all_claims_of(_session text)
RETURNS TABLE (owner text, kind text, name text, weight bigint, capacity bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = on AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('portalock.all_claims_of', 1919249516)) THEN
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY SELECT c.owner, c.kind, c.name, c.weight, c.capacity
        FROM portalock.claims c WHERE c.session = _session;
END $$;

-- Ends a session: from now on it has no effect. `bury` serves the owners that wait for it.
CREATE OR REPLACE FUNCTION portalock.end_session(_session text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM portalock.sessions s WHERE s.id = _session;
END $$;

-- Removes the claims of a dead session from these names, and serves the names.
CREATE OR REPLACE FUNCTION portalock.bury(_session text, _kinds text[], _names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    had record;
BEGIN
    IF EXISTS (SELECT FROM portalock.sessions s WHERE s.id = _session) THEN
        RETURN;
    END IF;
    -- All locks first, and always in the same order, so that two callers never deadlock. To serve a name may kill a session,
    -- and the releases of that session wait for this transaction, with their names locked.
    PERFORM portalock.lock_name(asked.name) FROM (SELECT unnest(_names) AS name ORDER BY 1) asked;
    FOR had IN
        SELECT DISTINCT asked.kind, asked.name FROM unnest(_kinds, _names) AS asked (kind, name)
    LOOP
        PERFORM portalock.remove(_session, c.kind, c.name, c.owner) FROM portalock.claims c
        WHERE c.session = _session AND c.name = had.name AND c.kind = had.kind;
        IF FOUND THEN
            PERFORM portalock.serve(had.kind, had.name, NULL);
        END IF;
    END LOOP;
END $$;

-- Removes rows that nobody needs any more: sessions that expired a minute ago; claims of dead sessions, of at most `_most`
-- names, and serves those names; and old names. Returns how many names there were, or `_most` if there may be more old names:
-- call it until it returns less than `_most`. Does nothing if another call is running.
CREATE OR REPLACE FUNCTION portalock.clean(_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    had record;
    names integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('portalock.clean', 1919249516)) THEN
        RETURN 0;
    END IF;
    DELETE FROM portalock.sessions s WHERE s.id IN (
        SELECT e.id FROM portalock.sessions e WHERE e.expires < clock_timestamp() - interval '1 minute'
        FOR UPDATE SKIP LOCKED);
    FOR had IN
        SELECT * FROM portalock.names_of_the_dead(_most)
    LOOP
        -- A transaction that has locked the name also finds the dead owners.
        CONTINUE WHEN NOT portalock.try_lock_name(had.name);
        PERFORM portalock.remove(c.session, c.kind, c.name, c.owner) FROM portalock.claims c
        WHERE c.name = had.name AND c.kind = had.kind
            AND NOT EXISTS (SELECT FROM portalock.sessions s WHERE s.id = c.session);
        PERFORM portalock.serve(had.kind, had.name, NULL);
        names := names + 1;
    END LOOP;
    RETURN CASE WHEN portalock.forget_names() THEN _most ELSE names END;
END $$;

-- At most `_most` names with claims of dead sessions. This function and the next one read a whole table, in its order: to read
-- it by an index, as the clients' connections prefer, would take longer than a statement may take.
CREATE OR REPLACE FUNCTION portalock.names_of_the_dead(_most integer) RETURNS TABLE (kind text, name text)
LANGUAGE plpgsql SET enable_seqscan = on AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT c.kind, c.name FROM portalock.claims c
        WHERE NOT EXISTS (SELECT FROM portalock.sessions s WHERE s.id = c.session) LIMIT _most;
END $$;

-- Removes names that the clock passed an hour ago, because from then on the clock alone makes larger tokens. Removes 10,000 at
-- most, because acquisitions of these names wait for it. Returns whether there may be more.
CREATE OR REPLACE FUNCTION portalock.forget_names() RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = on AS $$
DECLARE
    passed bigint := (date_part('epoch', clock_timestamp() - interval '1 hour') * 1000000)::bigint;
    forgotten bigint;
BEGIN
    -- A name that was granted meanwhile has a new token.
    DELETE FROM portalock.names n WHERE n.token < passed AND n.ctid = ANY (ARRAY(
        SELECT o.ctid FROM portalock.names o
        WHERE o.token < passed AND o.owner IS NULL
            AND NOT EXISTS (SELECT FROM portalock.queue c WHERE c.name = o.name AND c.kind = o.kind)
        LIMIT 10000));
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten = 10000;
END $$;
