//! Errors: one line, with what would be right.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::program::{Home, Running, write};

#[test]
fn a_bad_command_line_is_one_line_and_125() {
    let home = Home::new();
    for (words, part) in [
        ("", "--help"),
        ("deploy", "put it after --"),
        ("deploy make all", "--help"),
        ("-- make", "NAME"),
        ("--wait deploy -- make", "'--wait'"),
        ("--timeout 5 deploy -- make", "a number and a unit"),
        ("--timeout -5s deploy -- make", "--help"),
        ("--permits 3 deploy -- make", "write K/N"),
        ("--permits 0/3 deploy -- make", "at least 1"),
        ("--permits 4/3 deploy -- make", "can never be granted"),
        (
            "--permits 1/3 --shared deploy -- make",
            "cannot be used with",
        ),
        ("--on-lost panic deploy -- make", "term, kill, ignore"),
        ("--grace soon deploy -- make", "a number and a unit"),
        ("-E 300 deploy -- make", "0..=255"),
        ("who", "NAME"),
        ("completions tcsh", "bash"),
    ] {
        home.run(words).code(125).wrote("").said(part);
    }
    let mut command = home.with_lock("--");
    command.args(["true"]);
    Running::start(command).finish().code(125);
}

#[test]
fn a_directory_that_nobody_uses_is_not_created_by_a_look() {
    let home = Home::new();
    let mistyped = home.path("mistyped");
    for words in [
        "who DIR deploy",
        "list DIR",
        "list --watch DIR",
        "break DIR deploy",
    ] {
        let address = format!("fs:{}", mistyped.display());
        home.run(&words.replace("DIR", &address))
            .code(125)
            .said(&format!("there is no directory {}", mistyped.display()));
        assert!(!mistyped.exists(), "{words}");
    }
}

#[test]
fn a_bad_name_is_refused() {
    let home = Home::new();
    let mut empty = home.with_lock("fs:");
    empty.args(["", "--", "true"]);
    Running::start(empty)
        .finish()
        .code(125)
        .said("name is empty");
    let long = "x".repeat(256);
    home.run(&format!("{long} -- true"))
        .code(125)
        .said("at most 255 are allowed");
    let long = "x".repeat(250);
    home.run(&format!("-p 1/2 {long} -- true"))
        .code(125)
        .said("at most 239 bytes");
}

#[test]
fn a_bad_backend_is_refused_and_no_password_shown() {
    let home = Home::new();
    let bad_key = "[backends]\nci = 'http://u:hunter2@h'\n";
    write(home.path("bad-key.toml"), bad_key);
    write(home.path("no-toml.toml"), "[backends]\nci = hunter2\n");
    let config = |file: &str| format!("--config {}", home.path(file).display());
    for (words, part) in [
        (
            "memory: x -- true".to_owned(),
            "nothing outside of this process",
        ),
        (
            "http://u:hunter2@h x -- true".to_owned(),
            "\"http\" is not a backend",
        ),
        ("./locks x -- true".to_owned(), "such as fs:DIR"),
        ("ci x -- true".to_owned(), "\"ci\" is not a backend"),
        ("fs://run/lock x -- true".to_owned(), "fs:///DIR"),
        ("fs:/proc/nope x -- true".to_owned(), "/proc/nope"),
        (
            format!("{} ci x -- true", config("none.toml")),
            "can't read",
        ),
        (
            format!("{} ci x -- true", config("bad-key.toml")),
            "backend \"ci\"",
        ),
        (format!("{} ci x -- true", config("no-toml.toml")), "line 2"),
        (
            "who memory: x".to_owned(),
            "nothing outside of this process",
        ),
    ] {
        let refused = home.run(&words);
        refused.code(125).wrote("").said(part);
        assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_no_conflict() {
    let home = Home::new();
    let locks = home.path("locks");
    fs::create_dir(&locks).unwrap();
    fs::set_permissions(&locks, fs::Permissions::from_mode(0o555)).unwrap();
    let refused = home.run(&format!("-n fs:{} x -- true", locks.display()));
    // Root may write everywhere.
    if refused.status.code() != Some(0) {
        refused.code(125).said("locks");
    }
    let file = home.path("file");
    fs::write(&file, "").unwrap();
    home.run(&format!("-n fs:{} x -- true", file.display()))
        .code(125)
        .said("file");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let home = Home::new();
    let mut command = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_with_lock");
    command.args([
        "-c",
        "\"$0\" completions zsh | head -c1 >/dev/null",
        program,
    ]);
    command.env("HOME", home.path(""));
    Running::start(command).finish().code(0).silent();
}
