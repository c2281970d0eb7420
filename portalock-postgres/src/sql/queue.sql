-- The queue of a name: which sessions live, which claims fit, which claim is next. Only for the functions of this
-- schema: they run under `lock_name`.

-- Locks a name until the statement ends. It uses an advisory lock, because that writes nothing, also works for a name
-- without rows, and is first come, first served. Two names may share one advisory lock; then they only wait for each
-- other.
CREATE OR REPLACE FUNCTION portalock.lock_name(_kind text, _name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(_kind || '/' || _name, 1919249516));
END $$;

-- As `lock_name`, but returns false instead of waiting.
CREATE OR REPLACE FUNCTION portalock.try_lock_name(_kind text, _name text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_try_advisory_xact_lock(hashtextextended(_kind || '/' || _name, 1919249516));
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

-- The next token of a name: one more than the last token, or the clock in microseconds if that is larger. The clock
-- keeps the order if data is lost, and the last token keeps it if the clock is set back.
CREATE OR REPLACE FUNCTION portalock.next_token(_kind text, _name text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    token bigint;
BEGIN
    INSERT INTO portalock.tokens AS t (kind, name, token)
    VALUES (_kind, _name, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
    ON CONFLICT (name, kind) DO UPDATE SET token = greatest(t.token + 1, excluded.token)
    RETURNING t.token INTO token;
    RETURN token;
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
    RETURN used IS NULL OR used + _weight <= least(_capacity, smallest);
END $$;

-- Whether a new claim can be granted: there are no waiters that it would overtake, and it fits.
CREATE OR REPLACE FUNCTION portalock.is_free(_kind text, _name text, _weight bigint, _capacity bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM portalock.claims c WHERE c.name = _name AND c.kind = _kind AND c.place IS NOT NULL LIMIT 1;
    RETURN NOT FOUND AND portalock.fits(_kind, _name, _weight, _capacity);
END $$;

-- Removes the dead holders. Called only if a claim would have to wait for them.
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
            -- Waits for a transaction that is committing under this claim: see `ensure_held`.
            DELETE FROM portalock.claims h
            WHERE h.name = _name AND h.kind = _kind AND h.place IS NULL AND h.session = expired;
        END IF;
    END LOOP;
END $$;

-- Serves the queue in order, as long as the next claim can be granted. Claims of dead sessions are removed. `_asking`
-- learns of its grant from the answer to its own statement, and every other owner from a message to its session. Every
-- function that frees a claim calls this, so this also notifies the name's observers.
CREATE OR REPLACE FUNCTION portalock.serve(_kind text, _name text, _asking text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    first portalock.claims;
    granted bigint;
    buried boolean := false;
BEGIN
    LOOP
        SELECT * INTO first FROM portalock.claims c
        WHERE c.name = _name AND c.kind = _kind AND c.place IS NOT NULL
        ORDER BY c.place LIMIT 1;
        EXIT WHEN NOT FOUND;
        IF portalock.is_dead(first.session) THEN
            DELETE FROM portalock.claims c WHERE c.owner = first.owner;
            CONTINUE;
        END IF;
        IF NOT portalock.fits(_kind, _name, first.weight, first.capacity) THEN
            EXIT WHEN buried;
            buried := true;
            PERFORM portalock.bury_holders(_kind, _name);
            CONTINUE;
        END IF;
        granted := portalock.next_token(_kind, _name);
        UPDATE portalock.claims c SET place = NULL, token = granted, since = clock_timestamp()
        WHERE c.owner = first.owner;
        IF first.owner IS DISTINCT FROM _asking THEN
            PERFORM pg_notify('portalock_' || first.session, first.owner || ' ' || granted);
        END IF;
        -- An exclusive claim leaves no capacity to others.
        EXIT WHEN first.weight = first.capacity;
    END LOOP;
    PERFORM portalock.tell(_kind, _name);
END $$;
