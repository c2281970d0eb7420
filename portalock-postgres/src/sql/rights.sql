-- A user with USAGE on the schema may call its functions, even in a database that doesn't grant EXECUTE on functions by
-- default. Internal functions run with the caller's rights, and the caller has no rights to the tables.
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA portalock TO PUBLIC;
