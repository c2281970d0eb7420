-- A user with USAGE on the schema may call its functions, even in a database that doesn't grant EXECUTE on functions by
-- default. Internal functions run with the caller's rights, and the caller has no rights to the tables. This is for functions
-- that are created after it: an upgrade leaves the rights to the others as they are.
ALTER DEFAULT PRIVILEGES IN SCHEMA portalock GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
