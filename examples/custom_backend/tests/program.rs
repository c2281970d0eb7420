//! The example's program, as its reader would run it.

#[path = "../../tests/program/mod.rs"]
mod program;

#[test]
fn a_crashed_holders_lock_passes_on_with_a_larger_token() {
    let said = program::run("custom_backend");
    let lines: Vec<_> = said.lines().collect();
    let [held, refused, killed, ours] = lines[..] else {
        panic!("not the four lines that were expected:\n{said}");
    };
    let token = |line: &str| -> u64 { line.rsplit(' ').next().unwrap().parse().unwrap() };
    assert!(
        refused.contains("report is already locked, held by pid ")
            && refused.contains("(the unlucky one)"),
        "{said}"
    );
    assert_eq!(killed, "it is killed", "{said}");
    assert!(token(ours) > token(held), "{said}");
}
