//! Runs an example as its reader would.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What a run that ended well said.
#[allow(clippy::expect_used, reason = "this is the assertion of a test")]
pub(crate) fn run(example: &str) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command(example).output().expect("the example starts");
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(
        status.success(),
        "{example}: {status}\n{said}\n{}",
        String::from_utf8_lossy(&stderr)
    );
    said
}

/// The program that `cargo test` built along with this test; where it was told to build this test alone, there is none, or
/// one of yesterday's, and cargo runs the example.
fn command(example: &str) -> Command {
    if let Some(program) = built(example) {
        return Command::new(program);
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["run", "--quiet", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .args(["--example", example]);
    cargo
}

fn built(example: &str) -> Option<PathBuf> {
    let test = env::current_exe().ok()?;
    let profile = test.parent()?.parent()?;
    let program = profile
        .join("examples")
        .join(example)
        .with_extension(env::consts::EXE_EXTENSION);
    is_current(&program).unwrap_or(false).then_some(program)
}

/// Whether no source file that cargo noted down beside the program is newer than it is.
fn is_current(program: &Path) -> io::Result<bool> {
    let built = program.metadata()?.modified()?;
    let noted = fs::read_to_string(program.with_extension("d"))?;
    for source in noted.split_whitespace().skip(1) {
        if fs::metadata(source)?.modified()? > built {
            return Ok(false);
        }
    }
    Ok(true)
}
