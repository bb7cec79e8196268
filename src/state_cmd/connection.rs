//! Connection to a server's state service, and the translation of its errors.

use std::error::Error as _;
use std::time::Duration;

use esker_proto::state::v1::state_service_client::StateServiceClient;
use esker_server::state::status::{CODE_METADATA, SHARED_CODES};
use esker_server::state::{CODES, MAX_ANSWER};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::failure::Failure;
use crate::refusal;
use crate::remote::Remote;
use crate::server_address::{REACH_TIMEOUT, ServerAddress};
use crate::stream_cmd::failure::Asked;

/// Interval of HTTP/2 keep-alive pings, and the time limit for their answers: a server that disappears during
/// a call is detected after about twice this time.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client of one server. The server answered when the client was made.
#[derive(Clone)]
pub struct State {
    remote: Remote,
    /// Its state service.
    pub client: StateServiceClient<InterceptedService<Channel, Authorization>>,
}

impl State {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// `unreachable` and `tls`, within some three seconds, with the reason.
    pub async fn open(remote: Remote) -> Result<State, Failure> {
        remote.reach().await?;
        let address = remote.address();
        let cannot = |e: &dyn std::fmt::Display| {
            Failure::wrong("client", format!("cannot make a client for {address}: {e}"))
        };
        let endpoint = Endpoint::from_shared(address.to_string()).map_err(|e| cannot(&e))?;
        let endpoint = match remote.trust() {
            Some(trust) => endpoint
                .tls_config(trust.grpc_config())
                .map_err(|e| cannot(&e))?,
            None => endpoint,
        };
        let authorization = Authorization::new(&remote)?;
        let channel = endpoint
            .connect_timeout(REACH_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .connect_lazy();
        let client = StateServiceClient::with_interceptor(channel, authorization)
            .max_decoding_message_size(MAX_ANSWER);
        Ok(State { remote, client })
    }

    /// The server's address.
    pub fn address(&self) -> &ServerAddress {
        self.remote.address()
    }

    /// The server, to connect to it again.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The failure for a failed call.
    pub fn failure(&self, status: &Status) -> Failure {
        let message = status.message();
        if let Some(refused) =
            refusal_code(status).and_then(|code| refusal::of(self.address(), code, message))
        {
            return refused;
        }
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
                    "what answers at {} has no state service that this version can use: {message}",
                    self.address()
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
        Asked::new(self.address()).unreachable(&format!(
            "it closed the connection instead of answering ({reason})"
        ))
    }
}

/// Adds the access token to each call.
#[derive(Clone)]
pub struct Authorization(Option<MetadataValue<Ascii>>);

impl Authorization {
    fn new(remote: &Remote) -> Result<Authorization, Failure> {
        let Some(token) = remote.token() else {
            return Ok(Authorization(None));
        };
        let value = format!("Bearer {}", token.expose()).parse();
        // The error has no part of the token.
        let mut value: MetadataValue<Ascii> = value.map_err(|e| Failure::usage("token", e))?;
        value.set_sensitive(true);
        Ok(Authorization(Some(value)))
    }
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// The code of a refusal that concerns who asks.
fn refusal_code(status: &Status) -> Option<&str> {
    let sent = status.metadata().get(CODE_METADATA);
    let sent = sent.and_then(|code| code.to_str().ok());
    match status.code() {
        Code::Unauthenticated => Some(sent.unwrap_or("authn")),
        Code::PermissionDenied => Some(sent.unwrap_or("permission_denied")),
        // Without a code it may be a limit of the server or of this client.
        Code::ResourceExhausted => sent,
        _ => None,
    }
}

/// The server's code for an error, if the error is the server's.
fn code(status: &Status) -> Option<&'static str> {
    let sent = status.metadata().get(CODE_METADATA)?.to_str().ok()?;
    let codes = CODES.iter().map(|(code, ..)| *code);
    let mut codes = codes.chain(SHARED_CODES.iter().map(|(code, _)| *code));
    Some(codes.find(|code| *code == sent).unwrap_or("server"))
}
