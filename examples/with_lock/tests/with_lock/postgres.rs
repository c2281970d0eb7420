//! On a real Postgres server.

use portalock_testkit::servers::PostgresServer;

use crate::service::{Service, scenarios};

fn start() -> (Service, PostgresServer) {
    let server = PostgresServer::start().unwrap_or_else(|error| panic!("{error}"));
    let url = server.url();
    let own = format!(":{}/", server.port());
    let settings = move |port| {
        let url = url.replace(&own, &format!(":{port}/"));
        format!("type = 'postgres'\nurl = '{url}'\nlease_time = '8s'")
    };
    let service = Service::new(server.port(), settings);
    service.home.run("migrate direct").code(0).silent();
    (service, server)
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
    service.home.run("-t 6s direct deploy -- true").code(124);
    holder.finish().code(0).silent();
    service.home.run("-t 30s direct deploy -- true").code(0);
}

#[test]
fn a_database_without_the_schema_is_refused_with_what_to_do() {
    let server = PostgresServer::start().unwrap_or_else(|error| panic!("{error}"));
    let service = Service::new(server.port(), |_| "type = 'fs'\ndirectory = 'x'".to_owned());
    let address = server.url();
    service
        .home
        .run(&format!("{address} deploy -- true"))
        .code(125)
        .said("migrate");
    service
        .home
        .run(&format!("migrate {address}"))
        .code(0)
        .silent();
    service
        .home
        .run(&format!("migrate {address}"))
        .code(0)
        .silent();
    service
        .home
        .run(&format!("{address} deploy -- true"))
        .code(0);
}
