//! On a real Redis server.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
};

use portalock_testkit::servers::{RedisClusterOptions, RedisOptions, RedisServer};

use crate::{
    program::{Home, Running, wait_until_gone, write},
    service::{Service, scenarios},
};

fn start() -> (Service, RedisServer) {
    let server = RedisServer::start().unwrap_or_else(|error| panic!("{error}"));
    (Service::new(server.port(), settings), server)
}

/// The settings of a backend on a server that has just started.
fn settings(port: u16) -> String {
    format!(
        "type = 'redis'\nurl = 'redis://127.0.0.1:{port}'\nsession_ttl = '6s'\nrestart_wait = '0s'"
    )
}

scenarios!(
    start: waiters_are_served_in_their_order_and_shown,
    a_token_is_told_and_grows,
    who_does_not_wait_is_told_who_holds,
    a_semaphore_of_3_under_20_processes,
    holders_of_permits_are_shown,
    a_killed_with_lock_passes_the_lock_on,
    a_wait_ended_by_a_signal_leaves_no_place_in_the_queue,
    a_break_stops_the_command_and_says_who,
    a_cut_network_stops_the_command_and_the_lock_passes_on,
    an_ignored_loss_leaves_the_command_running,
    a_server_that_does_not_answer_is_no_conflict,
);

#[test]
fn a_cluster_is_named_by_its_nodes() {
    let options = RedisClusterOptions::new().replicas(0);
    let cluster = options.start().unwrap_or_else(|error| panic!("{error}"));
    let (home, url) = (Home::new(), cluster.url());
    let holder = home.hold(&format!("-t 30s {url} deploy"));
    home.run(&format!("-n {url} deploy -- true"))
        .code(124)
        .said("deploy");
    home.run(&format!("-t 30s {url} backup -- true")).code(0);
    home.run(&format!("list {url}")).code(0).wrote("deploy\n");
    holder.finish().code(0).silent();
    // The same by one node, for a plain server.
    let plain = cluster.node(0).url();
    home.run(&format!("{plain} deploy -- true"))
        .code(125)
        .said("redis+cluster://");
}

#[test]
fn a_reset_connection_is_no_loss() {
    let (service, server) = start();
    let holder = service.home.hold("direct deploy");
    // First the sessions, and then all other keys.
    for kind in ["pubsub", "normal"] {
        let mut redis = TcpStream::connect(server.addr()).unwrap();
        let kill = format!("CLIENT KILL TYPE {kind} SKIPME yes\r\n");
        redis.write_all(kill.as_bytes()).unwrap();
        let mut killed = String::new();
        BufReader::new(redis).read_line(&mut killed).unwrap();
        assert!(killed.starts_with(':') && killed.trim() != ":0", "{killed}");
    }
    // Longer than the session lives without a resume.
    let waiter = service.home.run("-t 8s direct deploy -- true");
    waiter.code(124);
    holder.finish().code(0).silent();
    service.home.run("-t 30s direct deploy -- true").code(0);
}

#[test]
fn without_notice_a_cut_connection_is_a_loss_at_once() {
    let server = RedisServer::start().unwrap_or_else(|error| panic!("{error}"));
    let settings = |port| settings(port) + "\nrelease_without_notice = true";
    let service = Service::new(server.port(), settings);
    let script = "echo $$; exec sleep 1000";
    let mut holder = Running::start(service.home.with_script("proxied deploy", script));
    let command = holder.pid_line();
    service.proxy.cut();
    holder.finish().code(123).said("the lock was lost: ");
    wait_until_gone(command);
    service.home.run("-t 30s direct deploy -- true").code(0);
}

#[test]
fn an_address_is_enough_also_of_a_socket() {
    let (service, server) = start();
    let _holder = service.home.hold("direct deploy");
    let socket = format!("-n unix://{} deploy -- true", server.socket().display());
    service.home.run(&socket).code(124).said("held by pid");
    service
        .home
        .run(&format!("-n {} deploy -- true", server.url()))
        .code(124);
    service
        .home
        .run(&format!("-n {}/1 deploy -- true", server.url()))
        .code(0);
}

#[test]
fn a_password_is_never_shown() {
    let server = RedisOptions::new()
        .setting("requirepass", "hunter2")
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let settings = |port| {
        format!("type = 'redis'\nurl = 'redis://:hunter2@127.0.0.1:{port}'\nrestart_wait = '0s'")
    };
    let service = Service::new(server.port(), settings);
    service.home.run("direct deploy -- true").code(0).silent();
    let settings = |port| format!("type = 'redis'\nurl = 'redis://:hunter3@127.0.0.1:{port}'");
    let file = service.home.path("wrong.toml");
    write(
        &file,
        format!("[backends.direct]\n{}", settings(server.port())),
    );
    let words = format!("--config {} direct deploy -- true", file.display());
    for words in [
        words.as_str(),
        &format!("-n {} deploy -- true", server.url()),
    ] {
        let refused = service.home.run(words);
        refused.code(125).said("with_lock: ");
        assert!(!refused.stderr.contains("hunter"), "{refused:?}");
    }
}
