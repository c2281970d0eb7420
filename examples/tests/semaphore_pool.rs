//! Six processes, three permits.

mod program;

#[test]
fn never_more_inside_than_there_are_permits() {
    let said = program::run("semaphore_pool");
    let busy: Vec<u32> = said
        .lines()
        .filter_map(|line| line.split_once(" of 3 presses were busy"))
        .map(|(before, _)| before.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(busy.len(), 12, "{said}");
    assert!(busy.iter().all(|count| (1..=3).contains(count)), "{said}");
    assert!(
        said.contains("12 posters, and never more than "),
        "no proof:\n{said}"
    );
}
