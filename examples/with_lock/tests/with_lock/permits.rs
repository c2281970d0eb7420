//! `--permits K/N`.

use std::fs;

use crate::program::{Home, Running};

#[test]
fn as_many_as_there_are_permits_and_no_more() {
    let home = Home::new();
    let mut holders: Vec<_> = (0..3).map(|_| home.hold("--permits 1/3 pool")).collect();
    home.run("-n --permits 1/3 pool -- true")
        .code(124)
        .said("pool has no room for 1 of 3 permits");
    holders.pop().unwrap().finish().code(0);
    home.run("-n -p 2/3 pool -- true")
        .code(124)
        .said("pool has no room for 2 of 3 permits");
    home.run("-n -p 1/3 pool -- true").code(0).silent();
    holders.pop().unwrap().finish().code(0);
    home.run("-n -p 2/3 pool -- true").code(0).silent();
}

#[test]
fn a_semaphore_of_3_under_20_processes() {
    let home = Home::new();
    let log = home.path("log");
    // The lines that are appended while a permit is held show how many were held at once.
    let script = format!("echo + >>{0}; sleep 0.02; echo - >>{0}", log.display());
    let all: Vec<_> = (0..20)
        .map(|_| Running::start(home.with_script("--permits 1/3 pool", &script)))
        .collect();
    for one in all {
        one.finish().code(0).silent();
    }
    let log = fs::read_to_string(log).unwrap();
    let mut inside = 0;
    for line in log.lines() {
        inside += if line == "+" { 1 } else { -1 };
        assert!((0..=3).contains(&inside), "{inside} at once: {log:?}");
    }
    assert_eq!(log.lines().count(), 40);
}

#[test]
fn a_semaphore_and_a_lock_of_one_name_do_not_meet() {
    let home = Home::new();
    let _permit = home.hold("--permits 1/1 deploy");
    let _lock = home.hold("-n deploy");
    home.run("-n -p 1/1 deploy -- true").code(124);
}
