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
    broken portalock.claims;
    lease_ms bigint;
BEGIN
    PERFORM portalock.lock_name(_name);
    broken := portalock.holder(_kind, _name, _owner);
    IF broken.owner IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT (extract(epoch FROM s.lease) * 1000)::bigint INTO lease_ms
    FROM portalock.sessions s WHERE s.id = broken.session FOR KEY SHARE;
    -- No client of this crate has so long an owner, which would fit in no index.
    IF NOT FOUND OR octet_length(broken.owner) > 200 THEN
        RETURN 0;
    END IF;
    INSERT INTO portalock.marks (owner, session, broken_by) VALUES (broken.owner, broken.session, _by)
    ON CONFLICT DO NOTHING;
    PERFORM portalock.is_now_busy(_kind, _name);
    PERFORM pg_notify('portalock_' || broken.session, 'broken');
    RETURN lease_ms;
END $$;

-- The token with which an owner holds; NULL if it does not hold. This stays true until the statement ends, so a statement
-- with this and one of the two other functions is about one hold. They keep their parameters, because an operator may
-- have restricted who may call them.
CREATE OR REPLACE FUNCTION portalock.hold_of(_kind text, _name text, _owner text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM portalock.lock_name(_name);
    RETURN (portalock.holder(_kind, _name, _owner)).token;
END $$;

-- Ends the hold of an owner, for any caller, and serves the queue. Affects no other owner. Returns whether the owner
-- held.
CREATE OR REPLACE FUNCTION portalock.evict(_kind text, _name text, _owner text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    evicted portalock.claims;
BEGIN
    PERFORM portalock.lock_name(_name);
    evicted := portalock.holder(_kind, _name, _owner);
    IF evicted.owner IS NULL THEN
        RETURN false;
    END IF;
    PERFORM portalock.remove(evicted.session, _kind, _name, evicted.owner);
    PERFORM portalock.serve(_kind, _name, NULL);
    RETURN true;
END $$;

-- The claim by which an owner holds a name. NULL if there is none. The latest, if an attempt that got no answer was granted in an
-- earlier session, too: the owner shares the name then with a claim that is dead and is not removed yet.
CREATE OR REPLACE FUNCTION portalock.holder(_kind text, _name text, _owner text) RETURNS portalock.claims
LANGUAGE plpgsql AS $$
DECLARE
    holds portalock.claims;
BEGIN
    SELECT * INTO holds FROM portalock.claims c
    WHERE c.name = _name AND c.kind = _kind AND c.place IS NULL AND portalock.owner_of(c.owner) = _owner
    ORDER BY c.token DESC LIMIT 1;
    RETURN holds;
END $$;
