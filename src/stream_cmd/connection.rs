//! Connection to a server: its address, and clients of the official SDK.
//!
//! A [`Connection`] opens with one that is closed at once ([`Remote::reach`]). It costs a round trip or two, and
//! reports within [`REACH_TIMEOUT`](crate::server_address::REACH_TIMEOUT) that nothing listens there, and why; the SDK
//! would retry several times and then report its internals.
//!
//! There are two clients with different time limits. Single requests are tried once, and are answered soon or
//! fail with the reason. Sessions survive a slow disk, and repeat an append only if it certainly had no
//! effect.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use s2_sdk::types::{AppendRetryPolicy, BasinName, EncryptionKey, RetryConfig, S2Endpoints};
use s2_sdk::{S2, S2Basin, S2Stream};

use super::failure::Asked;
use super::target::StreamTarget;
use crate::encryption_key::KEY;
use crate::failure::Failure;
use crate::remote::{Remote, warn_in_clear};
use crate::server_address::ServerAddress;

/// Longest wait for the answer to a single request. Reads and creations take milliseconds, or seconds where
/// the disk is busy.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for an acknowledgement in a session: a disk that takes longer is stuck.
const SESSION_LIMIT: Duration = Duration::from_secs(30);
/// Attempts of a session before it fails, with a pause of up to a second between them.
const SESSION_ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// Clients of one server. The server accepted a connection when they were made.
pub struct Connection {
    address: ServerAddress,
    requests: S2,
    sessions: S2,
    /// The key of the records that are read and written.
    key: Option<EncryptionKey>,
}

impl Connection {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// `unreachable` and `tls`, within some three seconds, with the reason; `client`.
    pub async fn open(remote: &Remote) -> Result<Connection, Failure> {
        remote.reach().await?;
        let endpoint = remote.s2_address().await?;
        let once = RetryConfig::new().with_max_attempts(NonZeroU32::MIN);
        let patient = RetryConfig::new()
            .with_max_attempts(SESSION_ATTEMPTS)
            .with_append_retry_policy(AppendRetryPolicy::NoSideEffects);
        Ok(Connection {
            requests: client(remote, &endpoint, REQUEST_LIMIT, once)?,
            sessions: client(remote, &endpoint, SESSION_LIMIT, patient)?,
            address: remote.address().clone(),
            key: None,
        })
    }

    /// The same, with this key for records. Warns if the key goes over a network in the clear: requests for
    /// records have it.
    pub fn with_key(self, key: Option<EncryptionKey>) -> Connection {
        if key.is_some() {
            warn_in_clear(KEY, &self.address);
        }
        Connection { key, ..self }
    }

    /// Whether it has a key for records.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The server's address.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// For operations on basins.
    pub fn account(&self) -> &S2 {
        &self.requests
    }

    /// For operations on the streams of a basin.
    pub fn basin(&self, basin: &BasinName) -> S2Basin {
        self.requests.basin(basin.clone())
    }

    /// For single requests about a stream.
    pub fn stream(&self, target: &StreamTarget) -> S2Stream {
        self.with_its_key(self.basin(&target.basin).stream(target.stream.clone()))
    }

    /// For sessions on a stream.
    pub fn session(&self, target: &StreamTarget) -> S2Stream {
        let basin = self.sessions.basin(target.basin.clone());
        self.with_its_key(basin.stream(target.stream.clone()))
    }

    fn with_its_key(&self, stream: S2Stream) -> S2Stream {
        match &self.key {
            Some(key) => stream.with_encryption_key(key.clone()),
            None => stream,
        }
    }

    /// For messages about basins.
    pub fn asked(&self) -> Asked<'_> {
        Asked::new(&self.address)
    }

    /// For messages about a basin.
    pub fn asked_basin<'a>(&'a self, basin: &'a BasinName) -> Asked<'a> {
        self.asked().about(Some(basin), None)
    }

    /// For messages about a stream.
    pub fn asked_stream<'a>(&'a self, target: &'a StreamTarget) -> Asked<'a> {
        self.asked().about(Some(&target.basin), Some(target))
    }
}

fn client(
    remote: &Remote,
    endpoint: &str,
    request_limit: Duration,
    retry: RetryConfig,
) -> Result<S2, Failure> {
    let address = remote.address();
    let cannot = |e: &dyn fmt::Display| {
        Failure::wrong("client", format!("cannot make a client for {address}: {e}"))
    };
    let endpoints = S2Endpoints::for_endpoint(endpoint).map_err(|e| cannot(&e))?;
    let config = remote
        .s2_config()
        .with_endpoints(endpoints)
        .with_request_timeout(request_limit)
        .with_retry(retry);
    S2::new(config).map_err(|e| cannot(&e))
}
