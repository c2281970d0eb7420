-- The operations of a client: each is one statement.

-- Makes one attempt for an owner. It never waits until the lock is free, and it finds what an earlier attempt has left.
--
-- Returns a JSON object with the columns of `queue_up`, NULL if an argument is NULL. Its `outcome` is one of these:
--   granted  with the token
--   queued   a place is kept; with one of the holders, and the milliseconds after which the owners ahead could be dead
--   refused  nothing is kept; with one of the holders
--   ended    the session is dead
--   stale    the attempt names another epoch than the session's, which `token` contains: nothing was done
--
-- Most attempts find a free name and take it by one change of its row. All others go on in `queue_up`. This function and
-- `release` don't set the search path, because that takes a sixth of the time of such a call. So they qualify every name, also
-- those of operators and types: they run with the rights of the schema's owner, and the caller's search path could contain an
-- operator or a type of the caller. What only the arguments decide is no condition of their statements, which would need a plan
-- of one more step. They return one value each, because a record takes a tenth of the time of such a call.
CREATE OR REPLACE FUNCTION portalock.acquire(
    _session text, _epoch bigint, _kind text, _name text, _owner text, _weight bigint, _capacity bigint, _queue boolean,
    _who text
) RETURNS text LANGUAGE plpgsql STRICT SECURITY DEFINER AS $$
DECLARE
    -- As `lock_name`. An assignment calls the function, whereas PERFORM would execute a query.
    ignored pg_catalog.text := pg_catalog.pg_advisory_xact_lock(portalock.lock_of(_name));
    answer pg_catalog.text;
BEGIN
    IF _weight OPERATOR(pg_catalog.=) _capacity AND _weight OPERATOR(pg_catalog.>) 0 THEN
        UPDATE portalock.names n SET
            token = greatest(n.token OPERATOR(pg_catalog.+) 1,
                (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint),
            owner = _owner, session = _session, weight = _weight, since = pg_catalog.clock_timestamp(), who = _who
        FROM portalock.sessions s
        WHERE (n.name, n.kind) OPERATOR(pg_catalog.=) (_name, _kind) AND NOT n.busy AND n.owner IS NULL
            AND (s.id, s.epoch) OPERATOR(pg_catalog.=) (_session, _epoch)
            AND s.expires OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
        RETURNING '{"outcome":"granted","token":' OPERATOR(pg_catalog.||) n.token::pg_catalog.text OPERATOR(pg_catalog.||) '}'
        INTO answer;
        IF FOUND THEN
            RETURN answer;
        END IF;
    END IF;
    SELECT pg_catalog.row_to_json(a) INTO answer
    FROM portalock.queue_up(_session, _epoch, _kind, _name, _owner, _weight, _capacity, _queue, _who) a;
    RETURN answer;
END $$;

-- The rest of `acquire`: for a name that is held, wanted, observed or new, for a part of a name, and for a session that is
-- dead or has another epoch.
CREATE OR REPLACE FUNCTION portalock.queue_up(
    _session text, _epoch bigint, _kind text, _name text, _owner text, _weight bigint, _capacity bigint, _queue boolean,
    _who text, OUT outcome text, OUT token bigint, OUT who text, OUT since bigint, OUT look_in bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known bigint;
    is_whole boolean;
    -- False if it may have changed since it was read.
    is_busy boolean;
    own portalock.claims;
    may_have_granted boolean := false;
    ignored text;
BEGIN
    -- No client of this crate calls it so. A claim that is not valid could be granted beside an exclusive holder.
    IF _kind NOT IN ('lock', 'semaphore') OR _weight NOT BETWEEN 1 AND _capacity THEN
        RAISE EXCEPTION 'portalock.acquire needs a kind of lock or semaphore, and a weight from 1 to the capacity; got kind %, weight %, capacity %',
            _kind, _weight, _capacity USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- It will be in a message to its session, sent by whoever frees the lock.
    IF octet_length(_owner) > 200 THEN
        RAISE EXCEPTION 'the owner is longer than 200 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM portalock.check_isolation();

    SELECT s.epoch, n.owner IS NOT NULL, n.busy INTO known, is_whole, is_busy
    FROM portalock.sessions s LEFT JOIN portalock.names n ON n.name = _name AND n.kind = _kind
    WHERE s.id = _session AND s.expires > clock_timestamp();
    IF NOT FOUND THEN
        outcome := 'ended';
        RETURN;
    END IF;
    IF known <> _epoch THEN
        outcome := 'stale';
        token := known;
        RETURN;
    END IF;

    own := portalock.find(_session, _kind, _name, _owner);
    IF (own.kind, own.name) <> (_kind, _name) THEN
        -- No client of this crate gives two claims one owner.
        RAISE EXCEPTION 'another request has the owner %', _owner USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF own.place IS NOT NULL THEN
        -- The function that made room has already served the queue. It is served again in case a person changed the
        -- rows.
        PERFORM portalock.serve(_kind, _name, _owner);
        own := portalock.find(_session, _kind, _name, _owner);
    END IF;
    IF own.owner IS NOT NULL AND own.place IS NULL THEN
        -- A server that was restarted shows grants that a synchronous standby may lack. The commit of a message waits for the standby,
        -- and the commit of a transaction that only reads does not.
        PERFORM pg_logical_emit_message(true, 'portalock', '');
        outcome := 'granted';
        token := own.token;
        RETURN;
    END IF;

    IF NOT is_whole AND portalock.is_free(_kind, _name, _weight, _capacity) THEN
        outcome := 'granted';
    ELSE
        look_in := portalock.look_in(_kind, _name, _session);
        IF look_in = 0 THEN
            -- An owner ahead is dead or has gone.
            is_busy := false;
            PERFORM portalock.bury_holders(_kind, _name);
            PERFORM portalock.serve(_kind, _name, NULL);
            may_have_granted := true;
            IF portalock.is_free(_kind, _name, _weight, _capacity) THEN
                outcome := 'granted';
            END IF;
        END IF;
    END IF;
    IF outcome = 'granted' THEN
        token := portalock.hold(_session, _kind, _name, _owner, _weight, _capacity, _who);
        PERFORM portalock.tell(_kind, _name);
        RETURN;
    END IF;

    SELECT h.who, (extract(epoch FROM h.since) * 1000000)::bigint INTO who, since
    FROM portalock.claims h WHERE h.name = _name AND h.kind = _kind AND h.place IS NULL LIMIT 1;
    IF own.owner IS NULL AND NOT _queue THEN
        outcome := 'refused';
        RETURN;
    END IF;
    outcome := 'queued';
    IF own.owner IS NULL THEN
        IF NOT may_have_granted THEN
            -- Don't wait for the disk: if a crash of the server loses the place, the client takes a new one. The grant
            -- of the place is written to the log later, and that write is waited for.
            ignored := set_config('synchronous_commit', 'off', true);
        END IF;
        INSERT INTO portalock.queue (owner, session, kind, name, weight, capacity, place, since, who)
        VALUES (_owner, _session, _kind, _name, _weight, _capacity, nextval('portalock.places'), clock_timestamp(), _who);
        IF NOT is_busy THEN
            PERFORM portalock.is_now_busy(_kind, _name);
        END IF;
    END IF;
END $$;

-- Ends the owner's hold or removes it from the queue, and serves the queue. Affects no other claim, and does nothing if
-- the owner has none. Returns whether the owner held.
--
-- Most releases end a hold that nobody else waits for or observes, and change one row. See `acquire` for the qualified names.
CREATE OR REPLACE FUNCTION portalock.release(_session text, _kind text, _name text, _owner text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    -- See `acquire`.
    ignored pg_catalog.text := pg_catalog.pg_advisory_xact_lock(portalock.lock_of(_name));
    is_busy boolean;
BEGIN
    UPDATE portalock.names n SET owner = NULL
    WHERE (n.name, n.kind, n.owner, n.session) OPERATOR(pg_catalog.=) (_name, _kind, _owner, _session)
    RETURNING n.busy INTO is_busy;
    IF is_busy IS NULL THEN
        RETURN portalock.leave(_session, _kind, _name, _owner);
    ELSIF is_busy THEN
        PERFORM portalock.pass_on(_session, _kind, _name, _owner);
    END IF;
    RETURN true;
END $$;

-- As `release`, for an owner whose attempt may still arrive: it changes the session's epoch, so that a late attempt does
-- nothing. Also returns the new epoch; NULL if the session is dead and no attempt can have an effect.
CREATE OR REPLACE FUNCTION portalock.release_for_good(
    _session text, _kind text, _name text, _owner text, OUT freed boolean, OUT epoch bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM portalock.lock_name(_name);
    -- Before any other row: whoever kills the session locks its row first, too, and then those of its marks.
    UPDATE portalock.sessions s SET epoch = s.epoch + 1 WHERE s.id = _session RETURNING s.epoch INTO epoch;
    freed := portalock.leave(_session, _kind, _name, _owner);
END $$;

-- What follows the end of a hold.
CREATE OR REPLACE FUNCTION portalock.pass_on(_session text, _kind text, _name text, _owner text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM portalock.marks m WHERE m.owner = _owner AND m.session = _session;
    PERFORM portalock.serve(_kind, _name, NULL);
END $$;

-- Removes a claim of any kind, and serves the queue. Returns whether the claim held.
CREATE OR REPLACE FUNCTION portalock.leave(_session text, _kind text, _name text, _owner text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held boolean := portalock.remove(_session, _kind, _name, _owner);
BEGIN
    IF held IS NOT NULL THEN
        PERFORM portalock.serve(_kind, _name, NULL);
    END IF;
    RETURN coalesce(held, false);
END $$;

-- The holders and the waiters, in the order of their grants and of their places, and the last token. Leaves out dead
-- owners.
CREATE OR REPLACE FUNCTION portalock.inspect(_kind text, _name text)
RETURNS TABLE (state text, owner text, weight bigint, token bigint, since bigint, who text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT 'last', NULL, NULL::bigint, t.token, NULL::bigint, NULL
        FROM portalock.names t WHERE t.name = _name AND t.kind = _kind;
    RETURN QUERY SELECT CASE WHEN c.place IS NULL THEN 'holds' ELSE 'waits' END, portalock.owner_of(c.owner), c.weight, c.token,
            (extract(epoch FROM c.since) * 1000000)::bigint, c.who
        FROM portalock.claims c JOIN portalock.sessions s ON s.id = c.session AND s.expires > clock_timestamp()
        WHERE c.name = _name AND c.kind = _kind
        ORDER BY c.place NULLS FIRST, c.token;
END $$;

-- The names of the locks that have holders or waiters.
CREATE OR REPLACE FUNCTION portalock.names() RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = on AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT c.name
        FROM portalock.claims c JOIN portalock.sessions s ON s.id = c.session AND s.expires > clock_timestamp()
        WHERE c.kind = 'lock';
END $$;
