//! Connection to a server: its address, and clients of the official SDK.
//!
//! A [`Connection`] opens with a plain TCP connection that is closed at once. It costs one round trip, and
//! reports within [`REACH_LIMIT`] that nothing listens there, and why; the SDK would retry several times and
//! then report its internals.
//!
//! There are two clients with different time limits. Single requests are tried once, and are answered soon or
//! fail with the reason. Sessions survive a slow disk, and repeat an append only if it certainly had no
//! effect.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use s2_sdk::types::{AppendRetryPolicy, BasinName, RetryConfig, S2Config, S2Endpoints};
use s2_sdk::{S2, S2Basin, S2Stream};
use tokio::net::TcpStream;

use super::failure::Asked;
use super::target::StreamTarget;
use crate::failure::Failure;
use crate::server_address::ServerAddress;

/// Longest wait for a connection.
const REACH_LIMIT: Duration = Duration::from_millis(2500);
/// Longest wait for the answer to a single request. Reads and creations take milliseconds, or seconds where
/// the disk is busy.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for an acknowledgement in a session: a disk that takes longer is stuck.
const SESSION_LIMIT: Duration = Duration::from_secs(30);
/// Attempts of a session before it fails, with a pause of up to a second between them.
const SESSION_ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();
/// The SDK requires an access token; the server does not check it.
const NO_TOKEN: &str = "none";

/// Clients of one server. The server accepted a connection when they were made.
pub struct Connection {
    address: ServerAddress,
    requests: S2,
    sessions: S2,
}

impl Connection {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// `unreachable`, within some three seconds, with the reason.
    pub async fn open(address: ServerAddress) -> Result<Connection, Failure> {
        reach(&address).await?;
        let once = RetryConfig::new().with_max_attempts(NonZeroU32::MIN);
        let patient = RetryConfig::new()
            .with_max_attempts(SESSION_ATTEMPTS)
            .with_append_retry_policy(AppendRetryPolicy::NoSideEffects);
        Ok(Connection {
            requests: client(&address, REQUEST_LIMIT, once)?,
            sessions: client(&address, SESSION_LIMIT, patient)?,
            address,
        })
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
        self.basin(&target.basin).stream(target.stream.clone())
    }

    /// For sessions on a stream.
    pub fn session(&self, target: &StreamTarget) -> S2Stream {
        self.sessions
            .basin(target.basin.clone())
            .stream(target.stream.clone())
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

/// Opens and closes a TCP connection, to check that something listens there.
///
/// # Errors
///
/// `unreachable`, within some three seconds, with the reason.
pub async fn reach(address: &ServerAddress) -> Result<(), Failure> {
    let connecting = TcpStream::connect((address.host(), address.port()));
    let reason = match tokio::time::timeout(REACH_LIMIT, connecting).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            _ => error.to_string(),
        },
        Err(_) => format!("no answer within {} s", REACH_LIMIT.as_secs_f64()),
    };
    Err(Asked::new(address).unreachable(&reason))
}

fn client(
    address: &ServerAddress,
    request_limit: Duration,
    retry: RetryConfig,
) -> Result<S2, Failure> {
    let cannot = |e: &dyn fmt::Display| {
        Failure::wrong("client", format!("cannot make a client for {address}: {e}"))
    };
    let endpoints = S2Endpoints::for_endpoint(&address.to_string()).map_err(|e| cannot(&e))?;
    let config = S2Config::new(NO_TOKEN)
        .with_endpoints(endpoints)
        .with_connection_timeout(REACH_LIMIT)
        .with_request_timeout(request_limit)
        .with_retry(retry)
        // Over plain http there are no certificates. This option avoids reading those of the system,
        // which is slow, and fails where there are none.
        .with_insecure_skip_cert_verification(!address.tls());
    S2::new(config).map_err(|e| cannot(&e))
}
