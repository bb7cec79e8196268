//! Ports of the loopback interface.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that Linux gives to connections that go out (32768 to 60999, unless that is set): what a test
/// leaves free for a moment, because its server is stopped, no connection of another test takes.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// How many ports this process has tried.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// A port that nothing listens on now, and that no other call in this process gets. Processes begin at different ports.
///
/// # Errors
///
/// If there is none.
pub fn free_port() -> io::Result<u16> {
    let begin = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        if tried >= COUNT {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let at = (begin + u32::from(tried)) % u32::from(COUNT);
        let port = FIRST + u16::try_from(at).expect("it is less than the number of ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_listened_on_and_is_given_to_nobody_else() {
        let (one, other) = (free_port().unwrap(), free_port().unwrap());
        assert_ne!(one, other);
        for port in [one, other] {
            TcpListener::bind(("127.0.0.1", port)).unwrap();
        }
    }
}
