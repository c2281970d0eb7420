//! The example program works as it claims.

use crate::support::Server;

#[allow(
    dead_code,
    reason = "the program's main is not called, what it runs is"
)]
#[path = "../../examples/etcd_fence.rs"]
mod etcd_fence;

#[tokio::test]
async fn etcd_fence_refuses_the_late_write() {
    let server = Server::start();
    let endpoint = server.etcd.endpoints().remove(0);
    let seen = etcd_fence::run(&endpoint).await.unwrap();
    assert_eq!(
        seen,
        [
            "slow holds, its write was taken: true",
            "quick holds, its write was taken: true",
            "slow wrote too late, its write was taken: false",
        ]
    );
}
