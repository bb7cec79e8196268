//! The address of a server, as all commands parse it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use s2_sdk::types::S2Endpoints;

/// Where a server listens unless its configuration names another address.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7070";
/// Longest wait for a connection.
pub const REACH_TIMEOUT: Duration = Duration::from_millis(2500);
/// Name of the environment variable for `--server`.
pub const SERVER_VARIABLE: &str = "ESKER_SERVER";

/// Where a server is: `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    tls: bool,
    host: String,
    port: u16,
}

impl ServerAddress {
    /// Whether the server uses TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// The name or the address of its host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ServerAddress {
    type Err = String;

    /// Reads `http://host:port`, `https://host`, `host:port` (plain http) or `[::1]:port`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (tls, authority) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(format!("`{scheme}` is neither http nor https")),
            None => (false, text),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#', '@']) {
            return Err("write no more than http://HOST:PORT".into());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) => match port.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None => return Err("after the ] comes :PORT".into()),
                },
                None => return Err("a ] is missing".into()),
            },
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err("write an IPv6 address in brackets: http://[::1]:7070".into());
                }
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err("the host is missing; write http://HOST:PORT".into());
        }
        let port = match port {
            Some(port) => port
                .parse()
                .map_err(|_| format!("`{port}` is not a port: 1 to 65535"))?,
            None if tls => 443,
            None => 80,
        };
        let address = ServerAddress {
            tls,
            host: host.to_owned(),
            port,
        };
        // An address that the SDK refuses is refused here, before it is used.
        S2Endpoints::for_endpoint(&address.to_string()).map_err(|e| e.0)?;
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        text.parse::<ServerAddress>().map(|a| a.to_string())
    }

    #[test]
    fn an_address_may_leave_out_what_goes_without_saying() {
        for (text, address) in [
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070"),
            ("http://localhost:7070/", "http://localhost:7070"),
            ("localhost:7070", "http://localhost:7070"),
            ("https://example.com", "https://example.com:443"),
            ("http://example.com", "http://example.com:80"),
            ("[::1]:7070", "http://[::1]:7070"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(address), "{text}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_meant_is_refused_with_the_reason() {
        for (text, reason) in [
            ("ftp://localhost", "neither http nor https"),
            ("http://localhost:7070/v1", "no more than"),
            ("http://user@localhost", "no more than"),
            ("http://:7070", "host is missing"),
            ("http://localhost:70700", "not a port"),
            ("::1:7070", "brackets"),
            ("[::1:7070", "] is missing"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(reason), "{text}: {problem}");
        }
    }
}
