//! Who sends a request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The address that a connection comes from. The accept loop puts it into each request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub SocketAddr);

/// Who sends a request. It is in the request's extensions before any handler runs.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    /// Anybody: no authentication is configured. Has the address that the request comes from.
    Anonymous(IpAddr),
}

/// What requests of the same principal have in common. Cheap to clone and to hash.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum PrincipalKey {
    /// A client without a token, by its address.
    Address(IpAddr),
}

impl Principal {
    /// The sender of a request without a token.
    pub(crate) fn anonymous(peer: Option<&PeerAddress>) -> Principal {
        let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |it| it.0.ip());
        Principal::Anonymous(address.to_canonical())
    }

    /// The key by which requests of this principal are counted.
    pub(crate) fn key(&self) -> PrincipalKey {
        match self {
            Principal::Anonymous(address) => PrincipalKey::Address(*address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_from_one_address_have_one_key() {
        let key = |address: &str| {
            let peer = PeerAddress(address.parse().unwrap());
            Principal::anonymous(Some(&peer)).key()
        };
        assert_eq!(key("10.0.0.1:1"), key("10.0.0.1:2"));
        assert_eq!(key("10.0.0.1:1"), key("[::ffff:10.0.0.1]:1"));
        assert_ne!(key("10.0.0.1:1"), key("10.0.0.2:1"));
    }
}
