//! On a real etcd.

use portalock_testkit::servers::EtcdServer;

use crate::service::{Service, scenarios};

fn start() -> (Service, EtcdServer) {
    let server = EtcdServer::start().unwrap_or_else(|error| panic!("{error}"));
    let settings = |port| {
        format!(
            "type = 'etcd'\nendpoints = ['127.0.0.1:{port}']\nlease_time = '8s'\nrequest_timeout = '5s'"
        )
    };
    (Service::new(server.port(0), settings), server)
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
fn a_cut_connection_loses_nothing() {
    let (service, _server) = start();
    let holder = service.home.hold("proxied deploy");
    service.proxy.cut();
    // Its lease is renewed on a new one.
    service.home.run("-t 8s direct deploy -- true").code(124);
    holder.finish().code(0).silent();
    service.home.run("-t 30s direct deploy -- true").code(0);
}

#[test]
fn an_address_is_enough() {
    let (service, server) = start();
    let _holder = service.home.hold("direct deploy");
    let address = format!("etcd://127.0.0.1:{}", server.port(0));
    service
        .home
        .run(&format!("-n {address} deploy -- true"))
        .code(124)
        .said("held by pid");
    service
        .home
        .run(&format!("-n {address}/other deploy -- true"))
        .code(0);
}
