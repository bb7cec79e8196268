//! Who sends a request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use esker_node::{Names, StoredToken, TokenHash, TokenScope};
use serde::{Deserialize, Serialize};

/// The address that a connection comes from. The accept loop puts it into each request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub SocketAddr);

/// Who sends a request. It is in the request's extensions before any handler runs.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    /// The holder of the root token, who may do everything. Has its hash, because it may be replaced.
    Root(TokenHash),
    /// The holder of an issued token.
    Token(Arc<StoredToken>),
    /// Anybody: no authentication is configured. Has the address that the request comes from.
    Anonymous(IpAddr),
    /// Somebody without a token, at an open path: may do nothing else. Has the same address.
    Unauthenticated(IpAddr),
}

/// The scope of those without a token.
static NOTHING: LazyLock<TokenScope> = LazyLock::new(TokenScope::default);

/// What requests of the same principal have in common. Cheap to clone and to hash.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum PrincipalKey {
    /// The holder of the root token.
    Root,
    /// The holder of an issued token, by its hash.
    Token(TokenHash),
    /// A client without a token, by its [`network`].
    Address(IpAddr),
}

/// A principal as one node names it to another. The scope of a token is not part of it: each node has it from the
/// catalog.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Claim {
    /// The holder of the root token.
    Root,
    /// The holder of the issued token that has this hash.
    Token([u8; 32]),
    /// Anybody: the node that names it has no authentication configured.
    Anonymous,
}

impl Principal {
    /// Its name for another node; `None` for a sender without a token, who sends only what every node answers
    /// itself.
    pub(crate) fn claim(&self) -> Option<Claim> {
        match self {
            Principal::Root(_) => Some(Claim::Root),
            Principal::Token(token) => Some(Claim::Token(token.hash.0)),
            Principal::Anonymous(_) => Some(Claim::Anonymous),
            Principal::Unauthenticated(_) => None,
        }
    }

    /// The sender of a request without a token.
    pub(crate) fn anonymous(peer: Option<&PeerAddress>) -> Principal {
        Principal::Anonymous(address(peer))
    }

    /// The sender of a request without a token, where others have one.
    pub(crate) fn unauthenticated(peer: Option<&PeerAddress>) -> Principal {
        Principal::Unauthenticated(address(peer))
    }

    /// What is put before the names of streams that it uses.
    pub(crate) fn auto_prefix(&self) -> Option<&str> {
        match self {
            Principal::Token(token) if token.auto_prefix_streams => {
                match &token.scope.streams.names {
                    Some(Names::Prefix(prefix)) => Some(prefix),
                    // None of these can be issued.
                    Some(Names::Exact(_)) | None => None,
                }
            }
            _ => None,
        }
    }

    /// Its name in the log: the id of its token.
    pub(crate) fn name(&self) -> &str {
        match self {
            Principal::Root(_) => "the root token",
            Principal::Token(token) => &token.id,
            Principal::Anonymous(_) | Principal::Unauthenticated(_) => "nobody",
        }
    }

    /// The key by which requests of this principal are counted.
    pub(crate) fn key(&self) -> PrincipalKey {
        match self {
            Principal::Root(_) => PrincipalKey::Root,
            Principal::Token(token) => PrincipalKey::Token(token.hash),
            Principal::Anonymous(address) | Principal::Unauthenticated(address) => {
                PrincipalKey::Address(network(*address))
            }
        }
    }

    /// What it is restricted to; `None` if it is not restricted.
    pub(crate) fn scope(&self) -> Option<&TokenScope> {
        match self {
            Principal::Token(token) => Some(&token.scope),
            Principal::Unauthenticated(_) => Some(&NOTHING),
            Principal::Root(_) | Principal::Anonymous(_) => None,
        }
    }
}

fn address(peer: Option<&PeerAddress>) -> IpAddr {
    let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |it| it.0.ip());
    address.to_canonical()
}

/// The address, or of IPv6 its network of 64 bits: whoever has one address of it may use all of them.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
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
        assert_eq!(key("[2001:db8::1]:1"), key("[2001:db8::ffff:2]:1"));
        assert_ne!(key("[2001:db8::1]:1"), key("[2001:db8:0:1::1]:1"));
    }
}
