//! The first thing people see.

mod program;

#[test]
fn two_processes_take_turns() {
    let said = program::run("quickstart");
    for process in ["alice", "bob"] {
        let turns = said
            .lines()
            .filter(|line| line.contains(process) && line.contains("holds the lock, token"))
            .count();
        assert_eq!(turns, 3, "{process}:\n{said}");
    }
    assert!(
        said.contains("6 of 6 turns are in the ledger"),
        "no proof:\n{said}"
    );
    assert!(
        said.contains("no two holds overlapped"),
        "no proof:\n{said}"
    );
    // Whoever came second was told whom it waits for.
    assert!(
        said.lines().any(|line| line.contains("waits for pid ")),
        "nobody waited:\n{said}"
    );
}
