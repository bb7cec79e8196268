//! Headers that concern one connection alone, and those that nodes add for each other.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// What a node sends with a forwarded request: see [`Envelope`](super::envelope::Envelope).
pub(crate) const ENVELOPE: HeaderName = HeaderName::from_static("esker-forwarded");
/// The id of the leader, in the answer of a node that does not lead; empty if it knows none.
pub(crate) const NOT_LEADER: HeaderName = HeaderName::from_static("esker-not-leader");
/// The id of the node that has answered a forwarded request.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("esker-served-by");

/// Headers that a node never takes from a client, nor passes on to one.
const INTERNAL: [HeaderName; 2] = [ENVELOPE, NOT_LEADER];

const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Removes the headers that are for one connection alone, and those of other nodes. `te: trailers` stays: gRPC
/// demands it, and trailers are passed on.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let takes_trailers = headers.get_all(header::TE).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|it| it.trim() == "trailers")
    });
    for name in named.iter().chain(&HOP_BY_HOP).chain(&INTERNAL) {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// What proves to a server who the client is. The node that gets it has identified the client, and the envelope has the
/// result: no other node needs it, and the network between the nodes may be readable.
const CREDENTIALS: [HeaderName; 2] = [header::AUTHORIZATION, header::COOKIE];

/// The same for a request, which goes to another host than the client has named, and for whose body nobody waits to
/// be asked. The client's credentials stay here.
pub(super) fn strip_request(headers: &mut HeaderMap) {
    strip(headers);
    headers.remove(header::HOST);
    headers.remove(header::EXPECT);
    for name in &CREDENTIALS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_or_other_nodes_is_removed_and_all_else_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-of-connection"),
            ("keep-alive", "timeout=5"),
            ("x-of-connection", "1"),
            ("te", "gzip;q=0.5, trailers"),
            ("transfer-encoding", "chunked"),
            ("host", "esker.example"),
            ("expect", "100-continue"),
            ("esker-forwarded", "forged"),
            ("esker-not-leader", "7"),
            ("s2-basin", "test-basin"),
            ("authorization", "Bearer x"),
            ("authorization", "Bearer y"),
            ("cookie", "esker-session=x"),
            ("s2-encryption-key", "k"),
            ("traceparent", "00-1-2-3"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        strip_request(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["s2-basin", "s2-encryption-key", "te", "traceparent"]);
        assert_eq!(headers[header::TE], "trailers");
    }

    #[test]
    fn te_without_trailers_goes() {
        let mut headers = HeaderMap::new();
        headers.insert(header::TE, HeaderValue::from_static("gzip"));
        strip(&mut headers);
        assert!(headers.is_empty());
    }
}
