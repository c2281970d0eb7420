//! The same function on every backend.

mod program;

#[test]
fn one_of_three_workers_writes_on_every_backend() {
    let said = program::run("generic_job");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, backend) in lines.iter().zip(["in memory", "in files", "at run time"]) {
        assert!(line.starts_with(backend), "{said}");
        assert!(
            line.ends_with("1 wrote the report, 2 left it to another"),
            "{said}"
        );
    }
}
