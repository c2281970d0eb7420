//! `with_lock who` and `with_lock list`.

use serde_json::Value;

use crate::program::{Home, Running};

#[test]
fn nobody_holds_a_free_name() {
    let home = Home::new();
    home.run("who deploy")
        .code(0)
        .wrote("nobody holds deploy\n");
    let json = home.run("who --json deploy");
    let json: Value = serde_json::from_str(&json.code(0).stdout).unwrap();
    assert_eq!(json["name"], "deploy");
    assert_eq!(json["held"], false);
    assert_eq!(json["holders"].as_array().unwrap().len(), 0);
}

#[test]
fn a_holder_is_shown_in_a_table() {
    let home = Home::new();
    let holder = home.hold("--label nightly deploy");
    let shown = home.run("who deploy");
    let rows: Vec<Vec<_>> = shown
        .code(0)
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 2, "{shown:?}");
    assert_eq!(
        rows[0],
        ["STATE", "KIND", "FOR", "SINCE", "PID", "HOST", "LABEL"]
    );
    let pid = holder.pid.as_raw_nonzero().to_string();
    assert_eq!(rows[1][..2], ["holds", "exclusive"]);
    assert!(
        rows[1].contains(&pid.as_str()) && rows[1].last() == Some(&"nightly"),
        "{shown:?}"
    );
}

#[test]
fn json_says_it_all() {
    let home = Home::new();
    let one = home.hold("--shared data");
    let two = home.hold("--shared --label other data");
    let json = home.run("who -j data");
    let json: Value = serde_json::from_str(&json.code(0).stdout).unwrap();
    assert_eq!(json["held"], true);
    assert!(json["last_token"].is_u64(), "{json}");
    // On files, one of the shared holders is shown.
    let holders = json["holders"].as_array().unwrap();
    assert!(!holders.is_empty());
    for holder in holders {
        assert_eq!(holder["kind"], "shared");
        assert!(holder["host"].is_string());
        let since = holder["since"].as_str().unwrap();
        assert!(since.ends_with('Z') && since.len() == 20, "{since}");
        // The command's name is the default label.
        let expected = [(&one, "sh"), (&two, "other")];
        assert!(expected.iter().any(|(running, label)| {
            holder["pid"] == running.pid.as_raw_nonzero().get() && holder["label"] == *label
        }));
    }
}

#[test]
fn holders_of_permits_are_shown_with_how_many() {
    let home = Home::new();
    let _two = home.hold("--permits 2/4 --label big pool");
    let _one = home.hold("--permits 1/4 --label small pool");
    let shown = home.run("who pool");
    let shown = &shown.code(0).stdout;
    assert!(
        shown.contains("2 permits") && shown.contains("1 permit "),
        "{shown}"
    );
    let json = home.run("who --json pool");
    let json: Value = serde_json::from_str(&json.code(0).stdout).unwrap();
    let permits: u64 = json["holders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|holder| holder["permits"].as_u64().unwrap())
        .sum();
    assert_eq!(permits, 3);
}

#[test]
fn nobodys_label_reaches_the_terminal_raw() {
    let home = Home::new();
    let mut command = home.with_script("deploy", "echo held; exec cat");
    // Options may follow the name, but not the command.
    command = {
        let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let mut command = home.with_lock("--label");
        command.arg("\x1b[2J").args(words);
        command
    };
    let mut holder = crate::program::Running::start(command);
    assert_eq!(holder.line(), "held");
    let shown = home.run("who deploy");
    assert!(shown.code(0).stdout.contains("\\u{1b}[2J"), "{shown:?}");
    home.run("-n deploy -- true").code(124).said("\\u{1b}[2J");
}

#[test]
fn what_is_held_is_listed_and_what_was_is_not() {
    let home = Home::new();
    home.run("list").code(0).wrote("");
    home.run("gone -- true").code(0);
    let _b = home.hold("b");
    let _a = home.hold("--shared a/../x");
    home.run("list").code(0).wrote("a/../x\nb\n");
    let json = home.run("list --json");
    let json: Vec<String> = serde_json::from_str(&json.code(0).stdout).unwrap();
    assert_eq!(json, ["a/../x", "b"]);
}

#[test]
fn a_watched_name_tells_each_change_in_a_line() {
    let home = Home::new();
    let mut watch = Running::start(home.with_lock("who --watch deploy"));
    let holder = home.hold("--label nightly deploy");
    let pid = holder.pid.as_raw_nonzero();
    let told = watch.line();
    assert!(
        told.contains(&format!(" deploy holds exclusive pid {pid} on ")),
        "{told}"
    );
    assert!(told.ends_with("(nightly)"), "{told}");
    holder.finish().code(0);
    let told = watch.line();
    assert!(told.contains(" deploy held exclusive pid "), "{told}");
}

#[test]
fn a_watched_list_tells_names_that_come_and_go_as_json() {
    let home = Home::new();
    let mut watch = Running::start(home.with_lock("list --watch --json"));
    let holder = home.hold("deploy");
    let told: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(
        (&told["name"], &told["held"]),
        (&"deploy".into(), &true.into())
    );
    holder.finish().code(0);
    let told: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(
        (&told["name"], &told["held"]),
        (&"deploy".into(), &false.into())
    );
}

#[test]
fn a_watch_ends_with_its_reader() {
    let home = Home::new();
    let script = format!(
        "{} list --watch --json | head -1",
        env!("CARGO_BIN_EXE_with_lock")
    );
    let _holder = home.hold("deploy");
    let other = home.hold("other");
    let mut pipe = Running::start(home.shell(&script));
    pipe.line();
    // The reader is gone when the next line is written.
    other.finish();
    pipe.finish().code(0);
}
