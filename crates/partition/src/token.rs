//! Access tokens as the catalog stores them: never their text, only its hash.

use std::fmt;

use s2_common::ValidationError;
use s2_common::access::{
    AccessTokenScope, Operation, PermittedOperationGroups, ReadWritePermissions, ResourceSet,
};

/// SHA-256 of a token's text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    /// The first four bytes: enough to compare, too few to search for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "TokenHash({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// A time from which on a token is not valid. The order is that of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    /// Milliseconds since the epoch.
    ms: u64,
    /// Nanoseconds after them: fewer than a million.
    nanos: u32,
}

impl Expiry {
    /// A time in milliseconds since the epoch, and nanoseconds after them: more than a millisecond of these
    /// count as the last one of it.
    pub fn new(ms: u64, nanos: u32) -> Expiry {
        Expiry {
            ms,
            nanos: nanos.min(999_999),
        }
    }

    /// As it is stored; `None` for never.
    pub(crate) fn stored(ms: Option<u64>, nanos: u32) -> Option<Expiry> {
        ms.map(|ms| Expiry::new(ms, nanos))
    }

    /// Milliseconds since the epoch, rounded down.
    pub fn ms(self) -> u64 {
        self.ms
    }

    /// Nanoseconds after [`Expiry::ms`].
    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// Whether it has come, at a time that is known to the millisecond: from the beginning of its
    /// millisecond on.
    pub fn is_over(self, now_ms: u64) -> bool {
        self.ms <= now_ms
    }
}

/// A token as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredToken {
    /// Its id, as the S2 API defines it.
    pub id: String,
    /// Hash of its text.
    pub hash: TokenHash,
    /// From when on it is not valid; `None` for never.
    pub expires_at: Option<Expiry>,
    /// Whether the prefix of its streams is put before the names that its holder uses.
    pub auto_prefix_streams: bool,
    /// What its holder may do.
    pub scope: TokenScope,
    /// When it was issued, in milliseconds since the epoch.
    pub issued_at_ms: u64,
    /// Whether it was issued before a fork of the catalog and not confirmed since: then it is not valid,
    /// because its revocation may have been lost.
    pub suspended: bool,
}

impl StoredToken {
    /// Whether its time is over.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at.is_some_and(|at| at.is_over(now_ms))
    }
}

/// What the holder of a token may do.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct TokenScope {
    /// Basins.
    #[prost(message, required, tag = "1")]
    pub basins: NameSet,
    /// Streams.
    #[prost(message, required, tag = "2")]
    pub streams: NameSet,
    /// Ids of access tokens.
    #[prost(message, required, tag = "3")]
    pub access_tokens: NameSet,
    /// Groups of operations of the S2 API.
    #[prost(message, required, tag = "4")]
    pub op_groups: OpGroups,
    /// Single operations of the S2 API: numbers of [`Operation`].
    #[prost(uint32, repeated, tag = "5")]
    pub ops: Vec<u32>,
    /// Namespaces of the state store.
    #[prost(message, required, tag = "6")]
    pub namespaces: NameSet,
    /// Agents of the state store.
    #[prost(message, required, tag = "7")]
    pub agents: NameSet,
    /// Reads of the state store.
    #[prost(bool, tag = "8")]
    pub state_read: bool,
    /// Writes of the state store.
    #[prost(bool, tag = "9")]
    pub state_write: bool,
    /// Reads of the admin API.
    #[prost(bool, tag = "10")]
    pub admin_read: bool,
    /// Changes by the admin API.
    #[prost(bool, tag = "11")]
    pub admin_write: bool,
}

/// A set of names; without names, it is empty.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NameSet {
    /// The names.
    #[prost(oneof = "Names", tags = "1, 2")]
    pub names: Option<Names>,
}

/// The names of a set.
#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Names {
    /// This one.
    #[prost(string, tag = "1")]
    Exact(String),
    /// All that begin with this; all if it is empty.
    #[prost(string, tag = "2")]
    Prefix(String),
}

impl NameSet {
    /// No name.
    pub const NONE: NameSet = NameSet { names: None };

    /// One name.
    pub fn exact(name: impl Into<String>) -> NameSet {
        NameSet {
            names: Some(Names::Exact(name.into())),
        }
    }

    /// All names that begin with a prefix.
    pub fn prefix(prefix: impl Into<String>) -> NameSet {
        NameSet {
            names: Some(Names::Prefix(prefix.into())),
        }
    }

    /// Whether the name is in the set. Names are compared byte by byte.
    pub fn contains(&self, name: &str) -> bool {
        match &self.names {
            None => false,
            Some(Names::Exact(exact)) => exact == name,
            Some(Names::Prefix(prefix)) => name.starts_with(prefix.as_str()),
        }
    }

    /// Whether every name of `other` is in this set.
    pub fn includes(&self, other: &NameSet) -> bool {
        match (&self.names, &other.names) {
            (_, None) => true,
            (None, Some(_)) => false,
            (_, Some(Names::Exact(name))) => self.contains(name),
            (Some(Names::Exact(_)), Some(Names::Prefix(_))) => false,
            (Some(Names::Prefix(own)), Some(Names::Prefix(prefix))) => {
                prefix.starts_with(own.as_str())
            }
        }
    }

    /// The exact name or the prefix; `None` for the empty set.
    pub fn text(&self) -> Option<&str> {
        match &self.names {
            Some(Names::Exact(text) | Names::Prefix(text)) => Some(text),
            None => None,
        }
    }

    fn from_s2<E: AsRef<str>, P: AsRef<str>>(set: &ResourceSet<E, P>) -> NameSet {
        match set {
            ResourceSet::None => NameSet::NONE,
            ResourceSet::Exact(name) => NameSet::exact(name.as_ref()),
            ResourceSet::Prefix(prefix) => NameSet::prefix(prefix.as_ref()),
        }
    }

    fn to_s2<E, P>(&self) -> Result<ResourceSet<E, P>, ValidationError>
    where
        E: std::str::FromStr<Err = ValidationError>,
        P: std::str::FromStr<Err = ValidationError>,
    {
        Ok(match &self.names {
            None => ResourceSet::None,
            Some(Names::Exact(name)) => ResourceSet::Exact(name.parse()?),
            Some(Names::Prefix(prefix)) => ResourceSet::Prefix(prefix.parse()?),
        })
    }
}

/// Groups of operations of the S2 API.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct OpGroups {
    /// Operations on the account.
    #[prost(message, required, tag = "1")]
    pub account: ReadWrite,
    /// Operations on basins.
    #[prost(message, required, tag = "2")]
    pub basin: ReadWrite,
    /// Operations on streams.
    #[prost(message, required, tag = "3")]
    pub stream: ReadWrite,
}

/// Whether operations that read, and those that write, are permitted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReadWrite {
    /// Those that read.
    #[prost(bool, tag = "1")]
    pub read: bool,
    /// Those that write.
    #[prost(bool, tag = "2")]
    pub write: bool,
}

impl From<ReadWritePermissions> for ReadWrite {
    fn from(permissions: ReadWritePermissions) -> Self {
        ReadWrite {
            read: permissions.read,
            write: permissions.write,
        }
    }
}

impl From<ReadWrite> for ReadWritePermissions {
    fn from(of: ReadWrite) -> Self {
        ReadWritePermissions {
            read: of.read,
            write: of.write,
        }
    }
}

/// All operations of the S2 API. A test compares it with the type's own list.
pub const OPERATIONS: [Operation; 24] = [
    Operation::ListBasins,
    Operation::CreateBasin,
    Operation::DeleteBasin,
    Operation::ReconfigureBasin,
    Operation::GetBasinConfig,
    Operation::IssueAccessToken,
    Operation::RevokeAccessToken,
    Operation::ListAccessTokens,
    Operation::ListStreams,
    Operation::CreateStream,
    Operation::DeleteStream,
    Operation::GetStreamConfig,
    Operation::ReconfigureStream,
    Operation::CheckTail,
    Operation::Append,
    Operation::Read,
    Operation::Trim,
    Operation::Fence,
    Operation::AccountMetrics,
    Operation::BasinMetrics,
    Operation::StreamMetrics,
    Operation::ListLocations,
    Operation::GetDefaultLocation,
    Operation::SetDefaultLocation,
];

impl TokenScope {
    /// A scope of the S2 API, without anything of the state store and the admin API.
    pub fn from_s2(scope: &AccessTokenScope) -> TokenScope {
        TokenScope {
            basins: NameSet::from_s2(&scope.basins),
            streams: NameSet::from_s2(&scope.streams),
            access_tokens: NameSet::from_s2(&scope.access_tokens),
            op_groups: OpGroups {
                account: scope.op_groups.account.into(),
                basin: scope.op_groups.basin.into(),
                stream: scope.op_groups.stream.into(),
            },
            ops: scope.ops.iter().map(|op| op as u32).collect(),
            ..TokenScope::default()
        }
    }

    /// The scope as the S2 API has it.
    ///
    /// # Errors
    ///
    /// A name does not follow the rules of the S2 API.
    pub fn to_s2(&self) -> Result<AccessTokenScope, ValidationError> {
        Ok(AccessTokenScope {
            basins: self.basins.to_s2()?,
            streams: self.streams.to_s2()?,
            access_tokens: self.access_tokens.to_s2()?,
            op_groups: PermittedOperationGroups {
                account: self.op_groups.account.into(),
                basin: self.op_groups.basin.into(),
                stream: self.op_groups.stream.into(),
            },
            ops: self.operations().collect(),
        })
    }

    /// The single operations that are permitted. A number that this build does not know permits nothing.
    pub fn operations(&self) -> impl Iterator<Item = Operation> + '_ {
        let is_permitted = |op: &Operation| self.ops.contains(&(*op as u32));
        OPERATIONS.into_iter().filter(is_permitted)
    }
}
