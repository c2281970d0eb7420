-- A lock as a condition of the user's own transaction.

-- Fails with SQLSTATE PL001 unless the owner holds with this token. It checks at once, and again when the transaction
-- commits. So the transaction can't commit after the lock could have been granted to another owner, however long it
-- took.
CREATE OR REPLACE FUNCTION portalock.ensure_held(_owner text, _token bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM portalock.claims c WHERE c.owner = _owner AND c.token = _token;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lock is no longer held' USING ERRCODE = 'PL001';
    END IF;
    INSERT INTO portalock.fences (owner, token) VALUES (_owner, _token);
END $$;

-- The second check. The claim's row stays locked until the commit is done. A statement that grants the lock to another
-- owner must first delete the row, so it waits. That takes a moment only: a transaction that stays open blocks nobody.
CREATE OR REPLACE FUNCTION portalock.hold_fence() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM portalock.fences f WHERE f.id = NEW.id;
    PERFORM FROM portalock.claims c WHERE c.owner = NEW.owner AND c.token = NEW.token FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lock is no longer held' USING ERRCODE = 'PL001';
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS hold_fence ON portalock.fences;
CREATE CONSTRAINT TRIGGER hold_fence AFTER INSERT ON portalock.fences
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION portalock.hold_fence();
