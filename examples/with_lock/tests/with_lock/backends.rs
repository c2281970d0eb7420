//! Selecting the backend: by address, by key, by the environment, by default.

use crate::program::{Home, Running, write};

#[test]
fn fs_is_the_default_in_a_directory_of_the_users_own() {
    let home = Home::new();
    let _holder = home.hold("deploy");
    assert!(home.locks().is_dir());
    home.run("-n fs: deploy -- true").code(124);
    home.run(&format!("-n fs:{} deploy -- true", home.locks().display()))
        .code(124);
    home.run(&format!(
        "-n fs://{} deploy -- true",
        home.locks().display()
    ))
    .code(124);
    home.run("-n fs:~/.local/state/portalock/locks deploy -- true")
        .code(124);
}

#[test]
fn a_subcommands_name_can_be_locked() {
    let home = Home::new();
    let _holder = home.hold("fs: who");
    home.run("-n fs: who -- true")
        .code(124)
        .said("who is already locked");
    home.run("list").code(0).wrote("who\n");
}

#[test]
fn the_environment_may_choose() {
    let home = Home::new();
    let address = format!("fs:{}", home.path("x").display());
    let _holder = home.hold(&format!("{address} deploy"));
    let mut command = home.with_lock("-n deploy -- true");
    command.env("PORTALOCK_BACKEND", &address);
    Running::start(command).finish().code(124);
    // An explicit argument has priority.
    let mut command = home.with_lock("-n fs: deploy -- true");
    command.env("PORTALOCK_BACKEND", &address);
    Running::start(command).finish().code(0);
    let mut command = home.with_lock("list");
    command.env("PORTALOCK_BACKEND", &address);
    Running::start(command).finish().code(0).wrote("deploy\n");
}

#[test]
fn a_key_is_looked_up_in_the_configuration() {
    let home = Home::new();
    let text = format!(
        "[backends]\nci = 'fs:{0}/a'\nlocal = {{ type = 'fs', directory = '{0}/b' }}\n",
        home.path("x").display()
    );
    let file = home.path(".config/portalock/backends.toml");
    write(&file, &text);
    for (key, directory) in [("ci", "x/a"), ("local", "x/b")] {
        let _holder = home.hold(&format!("{key} deploy"));
        let same = format!("-n fs:{} deploy -- true", home.path(directory).display());
        home.run(&same).code(124);
    }
    home.run("nope deploy -- true")
        .code(125)
        .said("there are ci and local");

    let elsewhere = home.path("elsewhere.toml");
    std::fs::rename(file, &elsewhere).unwrap();
    home.run("ci deploy -- true").code(125).said("\"ci\"");
    home.run(&format!(
        "--config {} ci deploy -- true",
        elsewhere.display()
    ))
    .code(0);
    home.run(&format!("who --config {} ci deploy", elsewhere.display()))
        .code(0);
    let mut command = home.with_lock("local deploy -- true");
    command.env("PORTALOCK_CONFIG", &elsewhere);
    Running::start(command).finish().code(0);
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.run(&format!("completions {shell}"));
        assert!(
            script.code(0).stdout.contains("conflict-exit-code"),
            "{shell}"
        );
    }
    let page = home.run("man");
    let page = &page.code(0).stdout;
    assert!(
        page.starts_with(".ie ") && page.contains(".TH with_lock 1"),
        "{page}"
    );
    assert!(page.contains("PORTALOCK_TOKEN"), "{page}");
}

#[test]
fn help_shows_examples() {
    let home = Home::new();
    for option in ["-h", "--help"] {
        let help = home.run(option);
        assert!(
            help.code(0).silent().stdout.contains("Examples:"),
            "{help:?}"
        );
        assert!(
            help.stdout.lines().all(|line| line.chars().count() <= 120),
            "{help:?}"
        );
    }
    home.run("--version")
        .code(0)
        .wrote(concat!("with_lock ", env!("CARGO_PKG_VERSION"), "\n"));
}
