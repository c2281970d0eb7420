//! Runs the `sh` blocks of the README and the documents, each in a directory of its own or, where it calls cargo, in the
//! workspace; and reads their `toml` and `json` blocks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The command that runs all tests, including this one.
const TEST_COMMAND: &str = "scripts/test";

/// Only checks that a benchmark runs, not how fast: so it can use what the tests have built, which had the features of the
/// whole workspace.
const AS_THE_TESTS: &str = r#"
cargo() {
  if [ "${*:1:3}" = "bench -p portalock-benches" ]; then
    command cargo bench --profile dev --workspace --all-features "${@:4}"
  else
    command cargo "$@"
  fi
}"#;

struct Block {
    file: PathBuf,
    line: usize,
    language: String,
    text: String,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn documents() -> Vec<PathBuf> {
    let root = workspace();
    let mut files: Vec<_> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    files.extend(["README.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
    // Each package's own page.
    files.extend(
        fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().path().join("README.md")),
    );
    files.retain(|file| file.exists());
    files.sort();
    files
}

fn blocks(file: &Path) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if open => open = false,
            Some(language) => {
                open = true;
                let language = language
                    .split([',', ' '])
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                found.push(Block {
                    file: file.to_owned(),
                    line: number + 1,
                    language,
                    text: String::new(),
                });
            }
            None if open => {
                let block = found.last_mut().unwrap();
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "{}: a block is not closed", file.display());
    found
}

fn all_blocks() -> Vec<Block> {
    documents().iter().flat_map(|file| blocks(file)).collect()
}

#[test]
fn the_readme_begins_with_the_main_job_and_the_tests_one_command_each() {
    let readme = blocks(&workspace().join("README.md"));
    let commands: Vec<_> = readme
        .iter()
        .filter(|block| block.language == "sh")
        .take(2)
        .collect();
    assert_eq!(commands.len(), 2);
    for block in &commands {
        assert_eq!(
            block.text.trim().lines().count(),
            1,
            "{:?} is not one command",
            block.text
        );
    }
    assert!(
        commands[0].text.contains("cargo run"),
        "{:?}",
        commands[0].text
    );
    assert_eq!(commands[1].text.trim(), TEST_COMMAND);
    let ci = fs::read_to_string(workspace().join(".ci/run")).unwrap();
    assert!(
        ci.lines().any(|line| line == TEST_COMMAND),
        ".ci/run does not call the README's test command"
    );
}

#[test]
fn every_block_says_its_language_and_is_of_one_that_is_run() {
    // `rust` blocks are doc tests, `text` blocks show output, `python` blocks show portalocker's form.
    let known = ["sh", "rust", "toml", "json", "text", "python"];
    for block in all_blocks() {
        let place = format!("{}:{}", block.file.display(), block.line);
        assert!(
            known.contains(&block.language.as_str()),
            "{place}: a block in {:?}",
            block.language
        );
        assert!(!block.text.trim().is_empty(), "{place}: an empty block");
    }
}

#[test]
fn every_command_runs() {
    let mut failed = Vec::new();
    for block in all_blocks()
        .iter()
        .filter(|block| block.language == "sh" && block.text.trim() != TEST_COMMAND)
    {
        let home = tempfile::tempdir().unwrap();
        let output = shell(&block.text, home.path());
        if !output.status.success() {
            let place = format!("{}:{}", block.file.display(), block.line);
            let said = String::from_utf8_lossy(&output.stderr);
            failed.push(format!("{place}: {}\n{}{said}", output.status, block.text));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

fn shell(command: &str, temporary: &Path) -> Output {
    let mut shell = Command::new("bash");
    // What cargo tells this test of its own package: because of it `ring` would be built again, with all that depends on it, now
    // and after this test.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            shell.env_remove(&name);
        }
    }
    shell
        .args([
            "-euo",
            "pipefail",
            "-c",
            &format!("{AS_THE_TESTS}\n{command}"),
        ])
        .current_dir(workspace())
        .env("TMPDIR", temporary)
        // A command may build a program with other features than the tests that run at the same time.
        .env("CARGO_TARGET_DIR", workspace().join("target/documents"))
        // The rest of what it builds is that of the tests. Cargo before 1.91 ignores this, and builds it once more.
        .env("CARGO_BUILD_BUILD_DIR", workspace().join("target"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_settings_block_can_be_read() {
    for block in all_blocks() {
        let place = format!("{}:{}", block.file.display(), block.line);
        match block.language.as_str() {
            "toml" => drop(
                block
                    .text
                    .parse::<toml::Table>()
                    .unwrap_or_else(|error| panic!("{place}: {error}")),
            ),
            "json" => drop(
                serde_json::from_str::<serde_json::Value>(&block.text)
                    .unwrap_or_else(|error| panic!("{place}: {error}")),
            ),
            _ => {}
        }
    }
}

/// Python blocks must at least be valid Python.
#[test]
fn every_python_block_can_be_read_by_python() {
    for block in all_blocks()
        .iter()
        .filter(|block| block.language == "python")
    {
        let place = format!("{}:{}", block.file.display(), block.line);
        let script = "import ast, sys; ast.parse(sys.argv[1])";
        match Command::new("python3")
            .args(["-c", script, &block.text])
            .output()
        {
            Ok(output) => assert!(
                output.status.success(),
                "{place}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => return eprintln!("not checked, without python3: {error}"),
        }
    }
}

#[test]
fn every_document_with_rust_in_it_is_a_doc_test() {
    let included =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for block in all_blocks().iter().filter(|block| block.language == "rust") {
        let name = block.file.strip_prefix(workspace()).unwrap();
        let from_docs = name.strip_prefix("docs").unwrap_or(name);
        let name = name.display();
        assert!(
            included.contains(&format!("../{}\"", from_docs.display())),
            "{name} has Rust blocks and is not in docs/tests/src/lib.rs"
        );
    }
}
