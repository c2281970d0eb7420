-- The queue of a name: which sessions live, which claims fit, which claim is next. Only for the functions of this
-- schema: they run under `lock_name`.

-- The advisory lock of a name. The lock and the semaphore of a name share it.
CREATE OR REPLACE FUNCTION portalock.lock_of(_name text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_catalog.hashtextextended(_name, 1919249516)
$$;

-- Locks a name until the statement ends. It uses an advisory lock, because that writes nothing, also works for a name
-- without rows, and is first come, first served. Two names may share one advisory lock; then they only wait for each
-- other.
CREATE OR REPLACE FUNCTION portalock.lock_name(_name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(portalock.lock_of(_name));
END $$;

-- As `lock_name`, but returns false instead of waiting.
CREATE OR REPLACE FUNCTION portalock.try_lock_name(_name text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_try_advisory_xact_lock(portalock.lock_of(_name));
END $$;

-- Fails in a transaction that doesn't see what was committed after its start. It would overlook new waiters, observers and marks.
CREATE OR REPLACE FUNCTION portalock.check_isolation() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'portalock needs a transaction that is read committed' USING ERRCODE = 'invalid_transaction_state';
    END IF;
END $$;

-- Whether the server process of a session that ends with its connection has ended. False for a session that outlives
-- its connection. If another process has the same number meanwhile, this returns false, and the session ends with its
-- lease.
CREATE OR REPLACE FUNCTION portalock.is_cut(_backend integer) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF _backend IS NULL THEN
        RETURN false;
    END IF;
    -- The transaction's snapshot of the processes may be older than the session.
    PERFORM pg_stat_clear_snapshot();
    PERFORM FROM pg_stat_get_activity(_backend);
    RETURN NOT FOUND;
END $$;

-- Whether a session is dead for good. If a session looks expired or cut, this function kills it by deleting its row;
-- with the row's lock it is certain that no renewal is running. A row that another transaction has locked counts as
-- alive: that transaction either renews the session or kills it. Never waits.
CREATE OR REPLACE FUNCTION portalock.is_dead(_session text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM portalock.sessions s
    WHERE s.id = _session AND s.expires > clock_timestamp() AND NOT portalock.is_cut(s.backend);
    IF FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM portalock.sessions s WHERE s.id IN (
        SELECT e.id FROM portalock.sessions e
        WHERE e.id = _session AND (e.expires <= clock_timestamp() OR portalock.is_cut(e.backend))
        FOR UPDATE SKIP LOCKED
    );
    RETURN FOUND OR NOT EXISTS (SELECT FROM portalock.sessions s WHERE s.id = _session);
END $$;

-- Whether a claim fits beside the holders.
CREATE OR REPLACE FUNCTION portalock.fits(_kind text, _name text, _weight bigint, _capacity bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    used bigint;
    smallest bigint;
BEGIN
    SELECT sum(h.weight), min(h.capacity) INTO used, smallest
    FROM portalock.claims h WHERE h.name = _name AND h.kind = _kind AND h.place IS NULL;
    -- A sum could be too large for its type.
    RETURN used IS NULL OR used <= least(_capacity, smallest) - _weight;
END $$;

-- Whether a new claim can be granted: there are no waiters that it would overtake, and it fits.
CREATE OR REPLACE FUNCTION portalock.is_free(_kind text, _name text, _weight bigint, _capacity bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM portalock.queue c WHERE c.name = _name AND c.kind = _kind AND c.place IS NOT NULL LIMIT 1;
    RETURN NOT FOUND AND portalock.fits(_kind, _name, _weight, _capacity);
END $$;

-- The claim of an owner of a session. NULL if there is none. It does not use the view, in which the search for a waiter could read
-- the whole queue.
CREATE OR REPLACE FUNCTION portalock.find(_session text, _kind text, _name text, _owner text) RETURNS portalock.claims
LANGUAGE plpgsql AS $$
DECLARE
    claim portalock.claims;
BEGIN
    SELECT n.kind, n.name, n.owner, n.session, n.weight, n.weight, NULL::bigint, n.token, n.since, n.who INTO claim
    FROM portalock.names n WHERE n.name = _name AND n.kind = _kind AND n.owner = _owner AND n.session = _session
    UNION ALL
    SELECT c.kind, c.name, c.owner, c.session, c.weight, c.capacity, c.place, c.token, c.since, c.who
    FROM portalock.queue c WHERE c.owner = _owner AND c.session = _session;
    RETURN claim;
END $$;

-- Whoever adds a row to `queue`, an observer or a mark calls this. A name without a row counts as busy.
CREATE OR REPLACE FUNCTION portalock.is_now_busy(_kind text, _name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE portalock.names n SET busy = true WHERE n.name = _name AND n.kind = _kind AND NOT n.busy;
END $$;

-- Lets a claim that fits hold. Returns its token: one more than the last token of the name, or the clock in microseconds if
-- that is larger. The clock keeps the order if data is lost, and the last token keeps it if the clock is set back.
CREATE OR REPLACE FUNCTION portalock.hold(
    _session text, _kind text, _name text, _owner text, _weight bigint, _capacity bigint, _who text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    granted bigint;
BEGIN
    IF _weight = _capacity THEN
        DELETE FROM portalock.queue c WHERE c.owner = _owner AND c.session = _session;
        INSERT INTO portalock.names AS n (kind, name, token, busy, owner, session, weight, since, who)
        VALUES (_kind, _name, (date_part('epoch', clock_timestamp()) * 1000000)::bigint,
            EXISTS (SELECT FROM portalock.queue c WHERE c.name = _name AND c.kind = _kind)
                OR EXISTS (SELECT FROM portalock.observers o WHERE o.name = _name AND o.kind = _kind),
            _owner, _session, _weight, clock_timestamp(), _who)
        ON CONFLICT ON CONSTRAINT names_pkey DO UPDATE SET token = greatest(n.token + 1, excluded.token), busy = excluded.busy,
            owner = excluded.owner, session = excluded.session, weight = excluded.weight, since = excluded.since,
            who = excluded.who
        RETURNING n.token INTO granted;
        RETURN granted;
    END IF;
    INSERT INTO portalock.names AS n (kind, name, token, busy)
    VALUES (_kind, _name, (date_part('epoch', clock_timestamp()) * 1000000)::bigint, true)
    ON CONFLICT ON CONSTRAINT names_pkey DO UPDATE SET token = greatest(n.token + 1, excluded.token), busy = true
    RETURNING n.token INTO granted;
    INSERT INTO portalock.queue AS c (owner, session, kind, name, weight, capacity, token, since, who)
    VALUES (_owner, _session, _kind, _name, _weight, _capacity, granted, clock_timestamp(), _who)
    ON CONFLICT ON CONSTRAINT queue_pkey DO UPDATE SET place = NULL, token = excluded.token, since = excluded.since
        -- Another claim of this owner may have come while this one waited for the row of its name.
        WHERE c.name = _name AND c.kind = _kind;
    RETURN granted;
END $$;

-- Removes a claim. Returns whether it held; NULL if the owner has no claim. Waits for a transaction that is committing under
-- the claim: see `ensure_held`.
CREATE OR REPLACE FUNCTION portalock.remove(_session text, _kind text, _name text, _owner text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    held boolean;
BEGIN
    UPDATE portalock.names n SET owner = NULL
    WHERE n.name = _name AND n.kind = _kind AND n.owner = _owner AND n.session = _session
    RETURNING true INTO held;
    IF held IS NULL THEN
        DELETE FROM portalock.queue c
        WHERE c.owner = _owner AND c.session = _session AND c.name = _name AND c.kind = _kind
        RETURNING c.token IS NOT NULL INTO held;
    END IF;
    IF held THEN
        DELETE FROM portalock.marks m WHERE m.owner = _owner AND m.session = _session;
    END IF;
    RETURN held;
END $$;

-- Removes the claims of dead holders. Called only if a claim would have to wait for them.
CREATE OR REPLACE FUNCTION portalock.bury_holders(_kind text, _name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    expired text;
BEGIN
    FOR expired IN
        SELECT DISTINCT h.session FROM portalock.claims h
        WHERE h.name = _name AND h.kind = _kind AND h.place IS NULL AND NOT EXISTS (
            SELECT FROM portalock.sessions s
            WHERE s.id = h.session AND s.expires > clock_timestamp() AND NOT portalock.is_cut(s.backend))
    LOOP
        IF portalock.is_dead(expired) THEN
            PERFORM portalock.remove(h.session, h.kind, h.name, h.owner) FROM portalock.claims h
            WHERE h.name = _name AND h.kind = _kind AND h.session = expired;
        END IF;
    END LOOP;
END $$;

-- Serves the queue in order, as long as the next claim can be granted. Claims of dead sessions are removed. `_asking`
-- learns of its grant from the answer to its own statement, and every other owner from a message to its session. Every
-- function that frees a claim calls this, so this also notifies the name's observers.
CREATE OR REPLACE FUNCTION portalock.serve(_kind text, _name text, _asking text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    first portalock.queue;
    granted bigint;
    buried boolean := false;
BEGIN
    PERFORM portalock.check_isolation();
    LOOP
        SELECT * INTO first FROM portalock.queue c
        WHERE c.name = _name AND c.kind = _kind AND c.place IS NOT NULL
        ORDER BY c.place LIMIT 1;
        IF NOT FOUND THEN
            -- If a waiter gets the whole name, `hold` does this.
            UPDATE portalock.names n SET busy = false
            WHERE n.name = _name AND n.kind = _kind AND n.busy
                AND NOT EXISTS (SELECT FROM portalock.queue c WHERE c.name = _name AND c.kind = _kind)
                AND NOT EXISTS (SELECT FROM portalock.observers o WHERE o.name = _name AND o.kind = _kind)
                AND NOT EXISTS (SELECT FROM portalock.marks m WHERE m.owner = n.owner AND m.session = n.session);
            EXIT;
        END IF;
        IF portalock.is_dead(first.session) THEN
            PERFORM portalock.remove(first.session, _kind, _name, first.owner);
            CONTINUE;
        END IF;
        IF NOT portalock.fits(_kind, _name, first.weight, first.capacity) THEN
            EXIT WHEN buried;
            buried := true;
            PERFORM portalock.bury_holders(_kind, _name);
            CONTINUE;
        END IF;
        granted := portalock.hold(first.session, _kind, _name, first.owner, first.weight, first.capacity, first.who);
        IF first.owner IS DISTINCT FROM _asking THEN
            PERFORM pg_notify('portalock_' || first.session, first.owner || ' ' || granted);
        END IF;
        -- An exclusive claim leaves no capacity to others.
        EXIT WHEN first.weight = first.capacity;
    END LOOP;
    PERFORM portalock.tell(_kind, _name);
END $$;
