-- Whoever may use the schema may call its functions, also where functions are nobody's by default. Those that are for other functions
-- run with the caller's rights, who has none to the tables.
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA portalock TO PUBLIC;
