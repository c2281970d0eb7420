//! A free port for a server.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

use super::process::StartError;

/// A port for one server. While this is kept, no other server of this module on this host gets it, so that it is still
/// free when its server starts or is restarted.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    /// The UDP port of the same number, which no server uses, marks the port as taken.
    _mark: UdpSocket,
}

/// Takes a free port below the range for outgoing connections.
pub(super) fn free_port() -> Result<Port, StartError> {
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        match take(fastrand::u16(15_000..32_000)) {
            Ok(port) => return Ok(port),
            Err(error) => refused = error,
        }
    }
    Err(StartError::io("find a free port")(refused))
}

fn take(number: u16) -> io::Result<Port> {
    let mark = UdpSocket::bind((Ipv4Addr::LOCALHOST, number))?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, number))?;
    Ok(Port {
        number,
        _mark: mark,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_port_whose_server_does_not_run_is_not_free() {
        let port = free_port().unwrap();
        let taken = take(port.number).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
