//! Connection to a server's state service, and the translation of its errors.

use std::error::Error as _;
use std::time::Duration;

use esker_proto::state::v1::state_service_client::StateServiceClient;
use esker_server::state::status::{CODE_METADATA, SHARED_CODES};
use esker_server::state::{CODES, MAX_ANSWER};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::failure::Failure;
use crate::server_address::ServerAddress;
use crate::stream_cmd::connection::reach;
use crate::stream_cmd::failure::Asked;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_millis(2500);
/// Interval of HTTP/2 keep-alive pings, and the time limit for their answers: a server that disappears during
/// a call is detected after about twice this time.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client of one server. The server answered when the client was made.
#[derive(Clone)]
pub struct State {
    address: ServerAddress,
    /// Its state service.
    pub client: StateServiceClient<Channel>,
}

impl State {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// `unreachable`, within some three seconds, with the reason.
    pub async fn open(address: ServerAddress) -> Result<State, Failure> {
        if address.tls() {
            return Err(Failure::usage(
                "invalid",
                format!("{address}: `esker state` speaks plain http; write http://HOST:PORT"),
            ));
        }
        reach(&address).await?;
        let endpoint = Endpoint::from_shared(address.to_string()).map_err(|e| {
            Failure::wrong("client", format!("cannot make a client for {address}: {e}"))
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .connect_lazy();
        let client = StateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(State { address, client })
    }

    /// The server's address.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// The failure for a failed call.
    pub fn failure(&self, status: &Status) -> Failure {
        let message = status.message();
        if let Some(code) = code(status) {
            let failure = Failure::wrong(code, message);
            return match code {
                "invalid" => Failure { exit: 2, ..failure },
                _ => failure,
            };
        }
        match status.code() {
            // The server's own errors have a code; this one comes from the connection.
            Code::Unavailable | Code::Cancelled => self.lost(status),
            Code::Unknown | Code::Internal if status.source().is_some() => self.lost(status),
            Code::Unimplemented => Failure::wrong(
                "not_esker",
                format!(
                    "what answers at {} has no state service as this version knows it: {message}",
                    self.address
                ),
            ),
            _ => Failure::wrong("server", message),
        }
    }

    fn lost(&self, status: &Status) -> Failure {
        let mut reason = status.message().to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            reason = error.to_string();
            source = error.source();
        }
        Asked::new(&self.address).unreachable(&format!(
            "it closed the connection instead of answering ({reason})"
        ))
    }
}

/// The server's code for an error, if the error is the server's.
fn code(status: &Status) -> Option<&'static str> {
    let sent = status.metadata().get(CODE_METADATA)?.to_str().ok()?;
    let codes = CODES.iter().map(|(code, ..)| *code);
    let mut codes = codes.chain(SHARED_CODES.iter().map(|(code, _)| *code));
    Some(codes.find(|code| *code == sent).unwrap_or("server"))
}
