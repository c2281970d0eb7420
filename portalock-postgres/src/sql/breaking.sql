-- Breaking locks, for operators.

-- The owner of a claim, as all clients know it. After a dot, the claim has a part that only its own client uses.
CREATE OR REPLACE FUNCTION portalock.owner_of(_claim text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$ SELECT split_part(_claim, '.', 1) $$;

-- Marks the hold of an owner as broken, and notifies its session. The first mark stays. Returns the lease of that
-- session in milliseconds, because a renewal that misses the mark was sent before this function returned; 0 if the
-- session is over; NULL if the owner does not hold.
CREATE OR REPLACE FUNCTION portalock.break_claim(_kind text, _name text, _owner text, _by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    holder text;
    lease_ms bigint;
BEGIN
    PERFORM portalock.lock_name(_kind, _name);
    UPDATE portalock.claims c SET broken_by = coalesce(c.broken_by, _by)
    WHERE c.name = _name AND c.kind = _kind AND c.place IS NULL AND portalock.owner_of(c.owner) = _owner
    RETURNING c.session INTO holder;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM pg_notify('portalock_' || holder, 'broken');
    SELECT (extract(epoch FROM s.lease) * 1000)::bigint INTO lease_ms FROM portalock.sessions s WHERE s.id = holder;
    RETURN coalesce(lease_ms, 0);
END $$;

-- Ends the hold of an owner, for any caller, and serves the queue. Affects no other owner. Returns whether the owner
-- held.
CREATE OR REPLACE FUNCTION portalock.evict(_kind text, _name text, _owner text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM portalock.lock_name(_kind, _name);
    -- Waits for a transaction that is committing under this claim: see `ensure_held`.
    DELETE FROM portalock.claims c
    WHERE c.name = _name AND c.kind = _kind AND c.place IS NULL AND portalock.owner_of(c.owner) = _owner;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM portalock.serve(_kind, _name, NULL);
    RETURN true;
END $$;
