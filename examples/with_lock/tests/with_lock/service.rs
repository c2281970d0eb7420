//! The same scenarios on every service, each on its own server.
//!
//! The configuration has two keys for the server: `direct`, and `proxied` with a network that can be cut.

use std::fs;

use portalock_testkit::proxy::{Direction, FaultProxy};
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Home, Running, wait_until, wait_until_gone, write};

/// A service with two addresses for `with_lock`.
pub(crate) struct Service {
    pub(crate) home: Home,
    pub(crate) proxy: FaultProxy,
}

impl Service {
    /// The server at `port`; `settings` makes a backend's table of a port.
    pub(crate) fn new(port: u16, settings: impl Fn(u16) -> String) -> Self {
        let home = Home::new();
        let proxy = FaultProxy::start(([127, 0, 0, 1], port)).unwrap();
        let text = format!(
            "[backends.direct]\n{}\n[backends.proxied]\n{}\n",
            settings(port),
            settings(proxy.port())
        );
        write(home.path(".config/portalock/backends.toml"), text);
        Self { home, proxy }
    }

    fn inspect(&self, name: &str) -> Value {
        let json = self.home.run(&format!("who --json direct {name}"));
        serde_json::from_str(&json.code(0).stdout).unwrap()
    }

    /// The labels of the holders, and of the waiters in order.
    fn labels(&self, name: &str) -> [Vec<String>; 2] {
        let answer = self.inspect(name);
        ["holders", "waiters"].map(|kind| {
            let persons = answer[kind].as_array().unwrap();
            let label = |person: &Value| person["label"].as_str().unwrap().to_owned();
            persons.iter().map(label).collect()
        })
    }
}

/// One test for each scenario, on the service that `start` starts.
macro_rules! scenarios {
    ($start:path: $($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            let (service, _server) = $start();
            crate::service::$name(&service);
        }
    )+};
}
pub(crate) use scenarios;

pub(crate) fn waiters_are_served_in_their_order_and_shown(service: &Service) {
    let home = &service.home;
    let log = home.path("log");
    let holder = home.hold("--label zero direct deploy");
    let mut waiters = Vec::new();
    let mut expected = Vec::new();
    for label in ["one", "two", "three"] {
        let script = format!("echo {label} >>{}", log.display());
        let words = format!("--label {label} direct deploy");
        waiters.push(Running::start(home.with_script(&words, &script)));
        expected.push(label);
        wait_until(|| service.labels("deploy")[1] == expected);
    }
    assert_eq!(service.labels("deploy")[0], ["zero"]);
    home.run("list direct").code(0).wrote("deploy\n");
    holder.finish().code(0).silent();
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
    assert_eq!(fs::read_to_string(log).unwrap(), "one\ntwo\nthree\n");
    home.run("who direct deploy")
        .code(0)
        .wrote("nobody holds deploy\n");
}

pub(crate) fn a_token_is_told_and_grows(service: &Service) {
    let mut last = 0;
    for words in ["direct deploy", "direct deploy", "--shared direct deploy"] {
        let told = service.home.run_script(words, "echo $PORTALOCK_TOKEN");
        let token: u64 = told.code(0).stdout.trim().parse().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
    }
}

pub(crate) fn who_does_not_wait_is_told_who_holds(service: &Service) {
    let home = &service.home;
    let holder = home.hold("--label nightly direct deploy");
    let pid = format!("held by pid {} on ", holder.pid.as_raw_nonzero());
    home.run("-n direct deploy -- true")
        .code(124)
        .said(&pid)
        .said("(nightly)");
    home.run("-t 3s direct deploy -- true").code(124).said(&pid);
    home.run("-n --shared direct deploy -- true")
        .code(124)
        .said(&pid);
    home.run("-n direct a --also deploy -- true")
        .code(124)
        .said("deploy");
    home.run("-n direct a -- true").code(0).silent();
    holder.finish().code(0).silent();
    home.run("-n direct deploy -- true").code(0).silent();
}

pub(crate) fn a_semaphore_of_3_under_20_processes(service: &Service) {
    let home = &service.home;
    let log = home.path("log");
    let script = format!("echo + >>{0}; sleep 0.02; echo - >>{0}", log.display());
    let all: Vec<_> = (0..20)
        .map(|_| Running::start(home.with_script("--permits 1/3 direct pool", &script)))
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

pub(crate) fn holders_of_permits_are_shown(service: &Service) {
    let home = &service.home;
    let _two = home.hold("--permits 2/3 --label two direct pool");
    let _one = home.hold("--permits 1/3 --label one direct pool");
    home.run("-n --permits 1/3 direct pool -- true").code(124);
    let mut labels = service.labels("pool")[0].clone();
    labels.sort();
    assert_eq!(labels, ["one", "two"]);
}

pub(crate) fn a_killed_with_lock_passes_the_lock_on(service: &Service) {
    let home = &service.home;
    let mut holder = Running::start(home.with_script("direct deploy", "echo $$; exec sleep 1000"));
    let command = holder.pid_line();
    let waiter = Running::start(home.with_lock("--label next direct deploy -- echo next"));
    wait_until(|| service.labels("deploy")[1] == ["next"]);
    holder.signal(Signal::KILL);
    waiter.finish().code(0).wrote("next\n").silent();
    wait_until_gone(command);
}

pub(crate) fn a_wait_ended_by_a_signal_leaves_no_place_in_the_queue(service: &Service) {
    let home = &service.home;
    let _holder = home.hold("--label first direct deploy");
    let waiter = Running::start(home.with_lock("--label next direct deploy -- true"));
    wait_until(|| service.labels("deploy")[1] == ["next"]);
    waiter.signal(Signal::TERM);
    waiter.finish().by(Signal::TERM).silent();
    assert_eq!(service.labels("deploy"), [vec!["first".to_owned()], vec![]]);
}

pub(crate) fn a_cut_network_stops_the_command_and_the_lock_passes_on(service: &Service) {
    let home = &service.home;
    let script = "echo $$; exec sleep 1000";
    let mut holder = Running::start(home.with_script("proxied deploy", script));
    let command = holder.pid_line();
    let waiter = Running::start(home.with_lock("--label next direct deploy -- echo next"));
    wait_until(|| service.labels("deploy")[1] == ["next"]);
    service.proxy.black_hole(Direction::Both);
    let finished = holder.finish();
    assert!(
        finished.stderr.contains("the lock was lost: "),
        "{finished:?}"
    );
    finished.code(123).said("the command gets SIGTERM");
    wait_until_gone(command);
    waiter.finish().code(0).wrote("next\n");
}

pub(crate) fn an_ignored_loss_leaves_the_command_running(service: &Service) {
    let home = &service.home;
    let script = "echo $$; read line; echo still here; exit 7";
    let mut holder = Running::start(home.with_script("--on-lost ignore proxied deploy", script));
    holder.pid_line();
    service.proxy.black_hole(Direction::Both);
    home.run("direct deploy -- echo next")
        .code(0)
        .wrote("next\n");
    let finished = holder.finish();
    finished
        .code(7)
        .wrote("still here\n")
        .said("runs on without it");
}

pub(crate) fn a_server_that_does_not_answer_is_no_conflict(service: &Service) {
    let home = &service.home;
    service.proxy.black_hole(Direction::Both);
    home.run("-t 300ms proxied deploy -- true")
        .code(125)
        .said("did not answer within 300ms");
    service.proxy.heal();
    service.proxy.refuse(true);
    let refused = home.run("-t 30s proxied deploy -- true");
    refused.code(125).said("with_lock: ");
    home.run("who proxied deploy").code(125).said("with_lock: ");
    home.run("list proxied").code(125).said("with_lock: ");
}

pub(crate) fn a_break_stops_the_command_and_says_who(service: &Service) {
    let home = &service.home;
    home.run("break --yes direct deploy")
        .code(1)
        .wrote("nobody holds deploy\n");
    let holder = home.hold("--label nightly direct deploy");
    let owner = service.inspect("deploy")["holders"][0]["owner"].clone();
    let owner = owner.as_str().unwrap();
    home.run("break direct deploy").code(125).said("--yes");
    // A former holder can't be broken, and no other holder is affected.
    let other = "0000000000000001-2-3";
    home.run(&format!("break --yes --owner {other} --json direct deploy"))
        .code(1);
    let next = Running::start(home.with_script("direct deploy", "echo held"));
    wait_until(|| service.labels("deploy")[1].len() == 1);
    let broken = home.run(&format!(
        "break --yes --owner {owner} --label operator --json direct deploy"
    ));
    let told: Value = serde_json::from_str(&broken.code(0).stdout).unwrap();
    assert_eq!(told["broken"], "released", "{told}");
    assert_eq!(told["owner"], owner);
    holder
        .finish()
        .code(123)
        .said("the lock was broken by pid ")
        .said("(operator)");
    next.finish().code(0).wrote("held\n");
}
