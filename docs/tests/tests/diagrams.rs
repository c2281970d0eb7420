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
    let page = fs::read_to_string(docs.join("architecture.md")).unwrap();
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
                page.contains(&format!("(diagrams/{name})")),
                "{name} is not shown"
            );
            drawn += 1;
        }
    }
    assert!(drawn > 0);
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    assert!(
        svg("lanes A | B\nA -> C : x")
            .unwrap_err()
            .contains("A -> C")
    );
}
