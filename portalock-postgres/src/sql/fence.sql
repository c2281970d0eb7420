-- A lock as a condition of the user's own transaction.

-- Fails with SQLSTATE PL001 unless the owner holds with this token. It checks at once, and again when the transaction
-- commits. So the transaction can't commit after the lock could have been granted to another owner, however long it
-- took. `_owner` is the claim's owner, kind and name, separated by slashes.
CREATE OR REPLACE FUNCTION portalock.ensure_held(_owner text, _token bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT portalock.is_held(_owner, _token, false) THEN
        RAISE EXCEPTION 'the lock is no longer held' USING ERRCODE = 'PL001';
    END IF;
    INSERT INTO portalock.fences (owner, token) VALUES (_owner, _token);
END $$;

-- Whether the owner holds with this token. With `_locked`, the claim's row then stays locked until the transaction ends.
CREATE OR REPLACE FUNCTION portalock.is_held(_owner text, _token bigint, _locked boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    claim text := split_part(_owner, '/', 1);
    claim_kind text := split_part(_owner, '/', 2);
    -- A name may contain slashes.
    claim_name text := substr(_owner, length(claim) + length(claim_kind) + 3);
BEGIN
    IF NOT _locked THEN
        RETURN EXISTS (SELECT FROM portalock.names n
                WHERE n.name = claim_name AND n.kind = claim_kind AND n.owner = claim AND n.token = _token)
            OR EXISTS (SELECT FROM portalock.queue c WHERE c.owner = claim AND c.token = _token);
    END IF;
    PERFORM FROM portalock.names n
    WHERE n.name = claim_name AND n.kind = claim_kind AND n.owner = claim AND n.token = _token FOR SHARE;
    IF NOT FOUND THEN
        PERFORM FROM portalock.queue c WHERE c.owner = claim AND c.token = _token FOR SHARE;
    END IF;
    RETURN FOUND;
END $$;

-- The second check. The claim's row stays locked until the commit is done. A statement that grants the lock to another
-- owner must first change the row, so it waits. That takes a moment only: a transaction that stays open blocks nobody.
CREATE OR REPLACE FUNCTION portalock.hold_fence() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A user may put this trigger on a table of their own. The types of its columns, and casts from them, are the user's, and
    -- would be used with the rights of the schema's owner.
    IF TG_RELID <> 'portalock.fences'::regclass THEN
        RAISE EXCEPTION 'portalock.hold_fence is no trigger for other tables' USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM portalock.fences f WHERE f.id = NEW.id;
    IF NOT portalock.is_held(NEW.owner, NEW.token, true) THEN
        RAISE EXCEPTION 'the lock is no longer held' USING ERRCODE = 'PL001';
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS hold_fence ON portalock.fences;
CREATE CONSTRAINT TRIGGER hold_fence AFTER INSERT ON portalock.fences
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION portalock.hold_fence();
-- Also in a transaction with `session_replication_role = replica`.
ALTER TABLE portalock.fences ENABLE ALWAYS TRIGGER hold_fence;
