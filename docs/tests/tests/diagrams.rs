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
    let page = |name: &str| fs::read_to_string(docs.join(name)).unwrap();
    let performance = page("performance.md");
    let pages = [
        page("architecture.md"),
        performance.clone(),
        page("../README.md"),
    ]
    .concat();
    let mut drawn = 0;
    for entry in fs::read_dir(docs.join("diagrams")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let svg = svg(&fs::read_to_string(&path).unwrap(), &performance).unwrap();
            let path = path.with_extension("svg");
            assert!(
                fs::read_to_string(&path).is_ok_and(|kept| kept == svg),
                "{} is old: cargo run -p portalock-docs-tests --example diagrams",
                path.display()
            );
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                pages.contains(&format!("(diagrams/{name})"))
                    || pages.contains(&format!("(docs/diagrams/{name})")),
                "{name} is not shown"
            );
            drawn += 1;
        }
    }
    assert!(drawn > 0);
}

/// The longest bar is that of the largest figure, and the others are in proportion.
#[test]
fn bars_are_as_long_as_the_table_says() {
    let tables = "\n### A table\n\n| what | measured |\n|---|---:|\n| portalock | 10.50 µs |\n| other | 42 µs |\n\n\
                  ### Another\n\n| more | 1 µs |\n";
    let drawn = svg("bars T : A table : portalock | theirs = other", tables).unwrap();
    assert!(drawn.contains("<rect class=\"ours\" x=\"310\" y=\"45\" width=\"108\""));
    assert!(drawn.contains("<rect class=\"peer\" x=\"310\" y=\"69\" width=\"430\""));
    assert!(drawn.contains(">theirs</text>") && drawn.contains(">42 µs</text>"));
    let other_table = svg("bars T : A table : more", tables);
    assert!(other_table.unwrap_err().contains("more"));
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    assert!(
        svg("lanes A | B\nA -> C : x", "")
            .unwrap_err()
            .contains("A -> C")
    );
}
