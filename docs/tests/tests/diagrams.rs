//! Each diagram is what its text says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{fs, path::Path};

use portalock_docs_tests::diagram::svg;

#[test]
fn every_diagram_is_drawn_from_its_text() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let architecture = fs::read_to_string(docs.join("architecture.md")).unwrap();
    let readme = fs::read_to_string(docs.join("../README.md")).unwrap();
    let mut drawn = 0;
    for entry in fs::read_dir(docs.join("diagrams")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let svg = svg(&fs::read_to_string(&path).unwrap()).unwrap();
            let path = path.with_extension("svg");
            assert!(
                fs::read_to_string(&path).is_ok_and(|kept| kept == svg),
                "{} is old: cargo run -p portalock-docs-tests --example diagrams",
                path.display()
            );
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                architecture.contains(&format!("(diagrams/{name})"))
                    || readme.contains(&format!("(docs/diagrams/{name})")),
                "{name} is not shown"
            );
            drawn += 1;
        }
    }
    assert!(drawn > 0);
}

/// `A = 12/s` in a chart is the row `| A | 12/s |` of a table of `docs/performance.md`. A bar without a number is a sentence.
#[test]
fn every_figure_of_a_chart_is_in_the_tables() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let chart = fs::read_to_string(docs.join("diagrams/why.txt")).unwrap();
    let tables = fs::read_to_string(docs.join("performance.md")).unwrap();
    let figures = chart
        .lines()
        .filter_map(|line| line.strip_prefix("bars "))
        .flat_map(|line| line.split_once(" : ").unwrap().1.split(" | "))
        .map(|bar| bar.split_once(" = ").unwrap())
        .filter(|(_, figure)| figure.starts_with(|letter: char| letter.is_ascii_digit()));
    let mut held = 0;
    for (name, figure) in figures {
        assert!(
            tables.contains(&format!("\n| {name} | {figure} |")),
            "docs/performance.md has no row that says {figure} for {name:?}"
        );
        held += 1;
    }
    assert!(held > 0);
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    assert!(
        svg("lanes A | B\nA -> C : x")
            .unwrap_err()
            .contains("A -> C")
    );
}
