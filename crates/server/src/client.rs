//! Whose turn a request is where many wait: the client that admission accounts it to.
//!
//! Turns go by principal first. A principal with a token is accounted for as a whole, however many
//! connections it has. Clients without a token are known by their address alone, which many may share (behind
//! a proxy, or on one machine); so each of their connections takes its own turns among those of the address.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use axum::extract::FromRequestParts;
use esker_node::Client;
use http::Extensions;
use http::request::Parts;

use crate::auth::{PeerAddress, Principal, PrincipalKey};

/// Keyed by chance, so that no client can choose a key that is another's.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The client of a request, by its extensions.
pub(crate) fn client(extensions: &Extensions) -> Client {
    let Some(key) = extensions.get::<Principal>().map(Principal::key) else {
        return Client::default();
    };
    // A peer's address has its port, so it identifies the connection.
    let connection = match (&key, extensions.get::<PeerAddress>()) {
        (PrincipalKey::Address(_), Some(peer)) => HASHER.hash_one(peer.0),
        _ => 0,
    };
    Client {
        principal: HASHER.hash_one(&key),
        connection,
    }
}

/// The client of a connection of which nothing is known but its address.
pub(crate) fn of_address(address: IpAddr) -> Client {
    let key = Principal::Unauthenticated(address.to_canonical()).key();
    Client {
        principal: HASHER.hash_one(&key),
        connection: 0,
    }
}

/// The client of a request, for handlers.
pub(crate) struct OfClient(pub(crate) Client);

impl<S: Sync> FromRequestParts<S> for OfClient {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<OfClient, Infallible> {
        Ok(OfClient(client(&parts.extensions)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_address_are_one_principal_and_take_their_own_turns() {
        let of = |address: &str| {
            let peer = PeerAddress(address.parse().unwrap());
            let mut extensions = Extensions::new();
            extensions.insert(Principal::anonymous(Some(&peer)));
            extensions.insert(peer);
            client(&extensions)
        };
        let (one, two, other) = (of("10.0.0.1:1"), of("10.0.0.1:2"), of("10.0.0.2:1"));
        assert_eq!(one, of("10.0.0.1:1"));
        assert_eq!(one.principal, two.principal);
        assert_ne!(one.connection, two.connection);
        assert_ne!(one.principal, other.principal);
    }
}
