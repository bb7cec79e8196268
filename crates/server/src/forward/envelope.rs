//! What a node sends with a request that it forwards: who sends it, and how far it has come.
//!
//! It is one header: base64 of JSON, so that members can be added. It is read from the connections of other
//! nodes alone, which are authenticated; what a client sends under its name is removed, and read by nobody.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

use super::hop_headers::ENVELOPE;
use crate::auth::Claim;

/// The version of the format.
const VERSION: u32 = 1;

/// How often a request is sent from node to node: to the leader, or to the one that was it, which names another.
pub(super) const MAX_HOPS: u32 = 2;

/// What a node sends with a request that it forwards.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Envelope {
    version: u32,
    /// The node that the client has sent it to.
    pub(super) node: u64,
    /// Who sends it.
    pub(super) claim: Claim,
    /// Where the client's connection comes from.
    pub(super) client: SocketAddr,
    /// How often it was sent from node to node, with this time.
    pub(super) hops: u32,
    /// Milliseconds for which the sender still waits for a leader.
    #[serde(default)]
    wait_ms: u64,
}

/// Why a request is not accepted as one of another node.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum BadEnvelope {
    #[error("the header `{ENVELOPE}` is missing")]
    Missing,
    #[error("the header `{ENVELOPE}` is malformed")]
    Malformed,
    #[error(
        "the header `{ENVELOPE}` has version {0}, and this node reads {VERSION}: use the newer version of Esker on it"
    )]
    Version(u32),
    #[error("the request was forwarded {0} times, and {MAX_HOPS} is the most")]
    Hops(u32),
}

impl Envelope {
    pub(super) fn new(
        node: u64,
        claim: Claim,
        client: SocketAddr,
        hops: u32,
        wait: Duration,
    ) -> Envelope {
        Envelope {
            version: VERSION,
            node,
            claim,
            client,
            hops,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// For how long the sender still waits for a leader.
    pub(super) fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }

    /// Puts it among the headers of a request.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        // Numbers and text are always JSON, and base64 is always a header.
        let json = serde_json::to_vec(self).unwrap_or_default();
        if let Ok(mut value) = HeaderValue::try_from(URL_SAFE_NO_PAD.encode(json)) {
            value.set_sensitive(true);
            headers.insert(ENVELOPE, value);
        }
    }

    /// Takes it from the headers of a request of another node.
    pub(super) fn take(headers: &mut HeaderMap) -> Result<Envelope, BadEnvelope> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let value = headers.remove(ENVELOPE).ok_or(BadEnvelope::Missing)?;
        let json = URL_SAFE_NO_PAD.decode(value.as_bytes());
        let json = json.map_err(|_| BadEnvelope::Malformed)?;
        let versioned: Versioned =
            serde_json::from_slice(&json).map_err(|_| BadEnvelope::Malformed)?;
        if versioned.version != VERSION {
            return Err(BadEnvelope::Version(versioned.version));
        }
        let envelope: Envelope =
            serde_json::from_slice(&json).map_err(|_| BadEnvelope::Malformed)?;
        match envelope.hops {
            1..=MAX_HOPS => Ok(envelope),
            hops => Err(BadEnvelope::Hops(hops)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(claim: Claim, hops: u32) -> Envelope {
        let client = "[2001:db8::1]:4711".parse().unwrap();
        Envelope::new(7, claim, client, hops, Duration::from_millis(1500))
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        for claim in [Claim::Root, Claim::Token([9; 32]), Claim::Anonymous] {
            let wanted = envelope(claim, 2);
            let mut headers = HeaderMap::new();
            wanted.write(&mut headers);
            assert_eq!(Envelope::take(&mut headers), Ok(wanted.clone()));
            assert_eq!(wanted.wait(), Duration::from_millis(1500));
            assert_eq!(Envelope::take(&mut headers), Err(BadEnvelope::Missing));
        }
    }

    #[test]
    fn what_is_malformed_newer_or_has_come_too_far_is_refused() {
        let mut headers = HeaderMap::new();
        for text in ["", "%", "e30", "bnVsbA"] {
            headers.insert(ENVELOPE, text.parse().unwrap());
            assert_eq!(
                Envelope::take(&mut headers),
                Err(BadEnvelope::Malformed),
                "{text}"
            );
        }
        for hops in [0, 3, u32::MAX] {
            envelope(Claim::Root, hops).write(&mut headers);
            assert_eq!(Envelope::take(&mut headers), Err(BadEnvelope::Hops(hops)));
        }
        let newer = Envelope {
            version: 2,
            ..envelope(Claim::Root, 1)
        };
        newer.write(&mut headers);
        assert_eq!(Envelope::take(&mut headers), Err(BadEnvelope::Version(2)));
    }
}
