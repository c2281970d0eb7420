//! A store that checks tokens.

#[path = "../../tests/program/mod.rs"]
mod program;

#[test]
fn a_holder_that_slept_too_long_is_refused() {
    let said = program::run("fenced_store");
    for expected in [
        "alice holds the lock",
        "bob holds the lock and writes",
        "alice wakes and writes: refused",
        "examples/store was lost",
        "the store says: written by bob",
    ] {
        assert!(said.contains(expected), "{expected}:\n{said}");
    }
}
