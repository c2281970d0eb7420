//! Free ports for servers.

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

/// How often a start is repeated with other ports.
const ATTEMPTS: usize = 10;

/// Starts a server, with ports that `start` takes. If the server ends because another program has taken one of them
/// meanwhile, it is started again.
pub(super) fn on_free_ports<T>(
    mut start: impl FnMut() -> Result<T, StartError>,
) -> Result<T, StartError> {
    for _ in 1..ATTEMPTS {
        match start() {
            Err(StartError::Ended { log, .. }) if names_a_taken_port(&log) => {}
            done => return done,
        }
    }
    start()
}

/// Whether a server's log has the system's text for a port that is taken.
fn names_a_taken_port(log: &str) -> bool {
    let log = log.to_lowercase();
    // The second is that of musl.
    log.contains("address already in use") || log.contains("address in use")
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
    fn a_start_is_repeated_only_if_a_port_was_taken() {
        let ends = |log: &str| {
            let (program, log) = ("test", log.to_owned());
            Err::<(), _>(StartError::Ended { program, log })
        };
        let mut starts = 0;
        let mut start = |log: &str, succeeds_at| {
            starts = 0;
            let started = on_free_ports(|| {
                starts += 1;
                if starts == succeeds_at {
                    Ok(())
                } else {
                    ends(log)
                }
            });
            (started.is_ok(), starts)
        };
        for taken in [
            "127.0.0.1:7: bind: Address already in use",
            "listen tcp 127.0.0.1:7: bind: address already in use",
            "could not bind IPv4 address \"127.0.0.1\": Address in use",
        ] {
            assert_eq!(start(taken, 3), (true, 3), "{taken}");
            assert_eq!(start(taken, 99), (false, ATTEMPTS), "{taken}");
        }
        assert_eq!(start("bad directive", 3), (false, 1));
    }

    #[test]
    fn a_port_whose_server_does_not_run_is_not_free() {
        let port = free_port().unwrap();
        let taken = take(port.number).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
