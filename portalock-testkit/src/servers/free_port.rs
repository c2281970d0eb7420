//! A free port for a server.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
};

use super::process::StartError;

/// A free port below the range for outgoing connections, so that it is still free when a server is restarted.
pub(super) fn free_port() -> Result<u16, StartError> {
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let port = fastrand::u16(15_000..32_000);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => refused = error,
        }
    }
    Err(StartError::io("find a free port")(refused))
}
