//! Draws `docs/diagrams/*.svg` anew from the text files beside them, and the charts' bars from the tables of `docs/performance.md`.
//!
//! ```sh
//! cargo run -p portalock-docs-tests --example diagrams
//! ```

use std::{error::Error, fs, path::Path};

use portalock_docs_tests::diagram::svg;

fn main() -> Result<(), Box<dyn Error>> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tables = fs::read_to_string(docs.join("performance.md"))?;
    for entry in fs::read_dir(docs.join("diagrams"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            fs::write(
                path.with_extension("svg"),
                svg(&fs::read_to_string(&path)?, &tables)?,
            )?;
        }
    }
    Ok(())
}
