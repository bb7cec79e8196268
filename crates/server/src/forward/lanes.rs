//! Which connection to another node a request goes over.
//!
//! Requests over one connection of HTTP/2 share its window. A session whose memory is not there yet, or whose client
//! takes nothing of its answer, keeps a part of it; if enough of them do, nothing moves on that connection. So
//! requests are divided, by whether they last, and by who sends them:
//!
//! - what ends by itself within its deadlines (an append, a read of a page) is never on a connection with what may last
//!   (sessions, and the calls of the state store, which follow it), so sessions hold up sessions alone;
//! - each principal has one connection for each of the two, which it shares with one principal in [`LANES`].
//!
//! The numbers bound the memory: with 16 MiB of bodies and 16 MiB of answers that nobody reads on each connection, all of
//! them together hold at most 256 MiB at either end of a pair of nodes, and one client 32 MiB.

use http::{HeaderMap, header};

/// Connections of each kind to a node.
pub(super) const LANES: u32 = 8;

/// The lane of a request. `principal` is a hash that no client can choose.
pub(super) fn lane(principal: u64, may_last: bool) -> u32 {
    let own = (principal % u64::from(LANES)) as u32;
    match may_last {
        true => LANES + own,
        false => own,
    }
}

/// Whether the client asks for events (SSE), which last as a session does.
pub(super) fn asks_for_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut kinds = accepted.filter_map(|kinds| kinds.to_str().ok());
    kinds.any(|kinds| kinds.to_ascii_lowercase().contains("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_share_no_connection_with_requests_that_end_by_themselves() {
        for principal in 0..100 {
            for other in 0..100 {
                assert_ne!(lane(principal, true), lane(other, false));
            }
            assert!(lane(principal, true) < 2 * LANES && lane(principal, false) < LANES);
        }
        let lanes: std::collections::BTreeSet<_> = (0..100).map(|it| lane(it, true)).collect();
        assert_eq!(lanes.len(), LANES as usize);
    }

    #[test]
    fn reads_over_sse_last_as_sessions_do() {
        let asks = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for kinds in accept {
                headers.append(header::ACCEPT, kinds.parse().unwrap());
            }
            asks_for_events(&headers)
        };
        assert!(asks(&["text/event-stream"]));
        assert!(asks(&["application/json, Text/Event-Stream;q=0.9"]));
        assert!(asks(&["application/json", "text/event-stream"]));
        assert!(!asks(&["application/json"]) && !asks(&[]));
    }
}
