//! What is served beside the APIs on the main listener, such as pages for people.
//!
//! A front gets the router of the APIs, with everything around it that finds out who sends a request and what they
//! may do, and returns the router that is served instead. It sends its own requests through that router, so it
//! shows to nobody what the APIs would refuse.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use http::header;
use tokio_util::sync::CancellationToken;

use crate::auth::PeerAddress;
use crate::config::Config;
use crate::request_guard::RequestGuard;
use crate::windows::Window;

/// Makes the router that is served, out of that of the APIs.
pub type Front = fn(FrontParts) -> Router;

/// What a front is made of.
pub struct FrontParts {
    /// The APIs of the listener, with all checks.
    pub api: Router,
    /// Which requests are for this server.
    pub guard: PageGuard,
    /// Where the listener listens.
    pub address: SocketAddr,
    /// Whether requests need an access token.
    pub needs_token: bool,
    /// Whether clients reach the listener by TLS.
    pub has_tls: bool,
    /// Cancelled when the server stops: answers that go on have to end then.
    pub stop: CancellationToken,
}

/// Which requests for pages are for this server, and not another site's.
#[derive(Clone)]
pub struct PageGuard(Arc<RequestGuard>);

impl PageGuard {
    /// The guard of a listener with this address.
    pub fn new(config: &Config, address: SocketAddr) -> PageGuard {
        PageGuard(Arc::new(RequestGuard::new(config, address)))
    }

    /// Checks `Host` as for all requests, and that `Origin`, if there is one, is the page's own.
    ///
    /// # Errors
    ///
    /// Why the request is refused.
    pub fn check(&self, request: &Request) -> Result<(), String> {
        self.0
            .check_target(request)
            .map_err(|refusal| refusal.to_string())?;
        match request.headers().get(header::ORIGIN) {
            Some(_) if !is_same_origin(request) => {
                Err("the request is from a page of another site".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Whether `Origin` names the host that the request is for.
pub fn is_same_origin(request: &Request) -> bool {
    let text = |name| {
        let value = request.headers().get(name);
        value.and_then(|value| value.to_str().ok())
    };
    // HTTP/2 has the host in the URI.
    let authority = request.uri().authority().map(|it| it.as_str());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), authority.or(text(header::HOST)))
    else {
        return false;
    };
    let of_origin = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    of_origin.is_some_and(|named| named.eq_ignore_ascii_case(host))
}

/// Puts into a request of the front what the connection of the one that caused it has: an address that fails to
/// authenticate too often is refused, whichever way it comes, and the window counts for whoever has signed in.
pub fn send_as(cause: &http::Extensions, request: &mut Request) {
    if let Some(peer) = cause.get::<PeerAddress>() {
        request.extensions_mut().insert(*peer);
    }
    if let Some(window) = cause.get::<Arc<Window>>() {
        request.extensions_mut().insert(window.clone());
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::windows::Windows;

    fn request(host: &str, origin: &str) -> Request {
        Request::builder()
            .uri("/")
            .header("host", host)
            .header("origin", origin)
            .body(Body::empty())
            .unwrap()
    }

    #[test]
    fn an_origin_is_the_same_if_it_names_the_host_with_its_port() {
        for (host, origin, expected) in [
            ("localhost:7070", "http://localhost:7070", true),
            ("Localhost:7070", "http://localhost:7070", true),
            ("esker.example", "https://esker.example", true),
            ("localhost:7070", "http://localhost:7071", false),
            ("localhost:7070", "http://localhost", false),
            ("localhost:7070", "null", false),
            (
                "localhost:7070",
                "http://localhost:7070.evil.example",
                false,
            ),
            ("localhost:7070", "ftp://localhost:7070", false),
        ] {
            assert_eq!(
                is_same_origin(&request(host, origin)),
                expected,
                "{host} {origin}"
            );
        }
    }

    #[test]
    fn a_page_is_for_loopback_names_and_its_own_site_alone() {
        let guard = PageGuard::new(&Config::default(), "127.0.0.1:7070".parse().unwrap());
        let check = |host, origin| guard.check(&request(host, origin));
        assert!(check("localhost:7070", "http://localhost:7070").is_ok());
        assert!(check("localhost:7070", "http://evil.example").is_err());
        assert!(check("evil.example:7070", "http://evil.example:7070").is_err());
    }

    #[test]
    fn a_request_of_a_page_has_the_address_and_the_window_of_the_browsers_connection() {
        let windows = Windows::new(1 << 20);
        let mut cause = http::Extensions::new();
        let peer = PeerAddress("127.0.0.1:1".parse().unwrap());
        cause.insert(peer);
        cause.insert(windows.open(peer.0.ip()));
        let mut request = request("localhost:7070", "http://localhost:7070");
        send_as(&cause, &mut request);
        let sent = request.extensions();
        assert_eq!(sent.get::<PeerAddress>().map(|peer| peer.0), Some(peer.0));
        let (window, own) = (sent.get::<Arc<Window>>(), cause.get::<Arc<Window>>());
        assert!(Arc::ptr_eq(window.unwrap(), own.unwrap()));
    }
}
