//! A store that checks tokens.

#[path = "../../tests/program/mod.rs"]
mod program;

#[test]
fn a_holder_that_was_cut_off_too_long_is_refused() {
    let said = program::run("fenced_store");
    for expected in [
        "alice holds the lock",
        "bob holds the lock and writes",
        "alice goes on and writes: refused",
        "examples/store was lost",
        "the store says: written by bob",
    ] {
        assert!(said.contains(expected), "{expected}:\n{said}");
    }
}
