//! A killed holder's lock on Redis.

#[path = "../../tests/program/mod.rs"]
mod program;

#[test]
fn a_lock_passes_on_from_a_killed_process() {
    let said = program::run("redis_handoff");
    let told = [
        "alice holds the lock, token ",
        "bob waits for pid ",
        "alice was killed",
        "bob holds the lock, token ",
        "bob released it",
        "",
        "The lock passed on ",
    ];
    for (line, expected) in said.lines().zip(told) {
        assert!(line.starts_with(expected), "{said}");
    }
    assert_eq!(said.lines().count(), told.len(), "{said}");
}
