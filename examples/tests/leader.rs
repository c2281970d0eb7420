//! A killed leader is followed, and one that is asked to steps down.

mod program;

#[test]
fn three_terms_are_observed_in_order() {
    let said = program::run("leader");
    let lines: Vec<_> = said.lines().collect();
    let [first, killed, second, asked, third, done, proof] = lines[..] else {
        panic!("not the seven lines that were expected:\n{said}");
    };
    let leader = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    assert_eq!(killed, "the leader is killed", "{said}");
    assert_eq!(asked, "the leader is asked to step down", "{said}");
    assert_eq!(done, "done", "{said}");
    assert_ne!(leader(first), leader(second), "{said}");
    assert_ne!(leader(first), leader(third), "{said}");
    assert!(
        proof.starts_with("the journal has the same three terms"),
        "{said}"
    );
}
