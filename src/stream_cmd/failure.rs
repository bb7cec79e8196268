//! Translates the SDK's errors for a person: what happened, to what, and what to do.
//!
//! An [`Asked`] holds the server and the object of a request, and turns each kind of error into a
//! [`Failure`]. Codes are the server's own where it has one.

use s2_sdk::error::{
    AppendConditionFailed, AppendError, AppendSessionError, ClientError, ErrorCode, ReadError,
    ReadSessionError, RequestError, ServerError,
};
use s2_sdk::types::BasinName;

use super::target::StreamTarget;
use crate::failure::Failure;
use crate::refusal;
use crate::server_address::ServerAddress;

/// The server and the object of a request.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    address: &'a ServerAddress,
    basin: Option<&'a BasinName>,
    stream: Option<&'a StreamTarget>,
}

impl<'a> Asked<'a> {
    /// A request that concerns no basin.
    pub fn new(address: &'a ServerAddress) -> Asked<'a> {
        Asked {
            address,
            basin: None,
            stream: None,
        }
    }

    /// The same server, and a request that concerns this basin or stream.
    pub fn about(self, basin: Option<&'a BasinName>, stream: Option<&'a StreamTarget>) -> Self {
        Asked {
            basin,
            stream,
            ..self
        }
    }

    /// The server could not be reached.
    pub fn unreachable(self, reason: &str) -> Failure {
        Failure::unreachable(
            "unreachable",
            format!("cannot reach {}: {reason}", self.address),
        )
        .advise("is a server running? start one with `esker server`, or name another with --server")
    }

    /// A single request failed.
    pub fn request(self, error: &RequestError) -> Failure {
        match error {
            RequestError::Client(error) => self.client(error),
            RequestError::Server(error) => self.server(error),
            RequestError::Validation(error) => Failure::usage("invalid", &error.0),
            other => Failure::wrong("client", other),
        }
    }

    /// A single read failed.
    pub fn read(self, error: &ReadError) -> Failure {
        match error {
            ReadError::Request(error) => self.request(error),
            ReadError::ReadUnwritten(tail) => self.unwritten(tail.seq_num),
            other => Failure::wrong("client", other),
        }
    }

    /// A read session failed.
    pub fn read_session(self, error: &ReadSessionError) -> Failure {
        match error {
            ReadSessionError::Read(error) => self.read(error),
            ReadSessionError::HeartbeatTimeout => {
                self.unreachable("it stopped sending while a stream was being read")
            }
            other => Failure::wrong("client", other),
        }
    }

    /// A single append failed.
    pub fn append(self, error: &AppendError) -> Failure {
        match error {
            AppendError::Request(error) => self.request(error),
            AppendError::ConditionFailed(condition) => self.condition(condition),
            AppendError::IndefiniteFailure {
                final_attempt_error,
            } => self.append(final_attempt_error),
            other => Failure::wrong("client", other),
        }
    }

    /// An append session failed.
    pub fn append_session(self, error: &AppendSessionError) -> Failure {
        match error {
            AppendSessionError::Append(error) => self.append(error),
            AppendSessionError::IndefiniteFailure {
                final_attempt_error,
            } => self.append_session(final_attempt_error),
            AppendSessionError::AckTimeout => {
                self.unreachable("no acknowledgement came for a long time")
            }
            AppendSessionError::ServerDisconnected | AppendSessionError::StreamClosedEarly => {
                self.unreachable("the connection ended")
            }
            other => Failure::wrong("client", other),
        }
    }

    /// A read began beyond the end of the stream.
    pub fn unwritten(self, tail: u64) -> Failure {
        let stream = self.stream_name();
        Failure::wrong(
            "beyond_tail",
            format!(
                "{stream} ends before that: the next record will have sequence number {tail}; \
                 `--last 0 --follow` waits for what comes next"
            ),
        )
    }

    /// The next record does not get the expected sequence number.
    pub fn seq_num_mismatch(self, actual: u64) -> Failure {
        let stream = self.stream_name();
        Failure::wrong(
            "seq_num_mismatch",
            format!(
                "the next record of {stream} has sequence number {actual}, which is not what \
                 --match-seq-num expects"
            ),
        )
    }

    /// Records that were under way cannot be searched for, because the stream was trimmed beyond this
    /// position.
    pub fn trimmed_in_doubt(self, position: u64) -> Failure {
        let stream = self.stream_name();
        Failure::unreachable(
            "unreachable",
            format!(
                "the connection was lost, and {stream} was trimmed at {position} meanwhile, so nobody \
                 can look for what was under way"
            ),
        )
    }

    /// Other clients append continuously, so that each append of batches in doubt fails its condition.
    pub fn contended(self) -> Failure {
        let stream = self.stream_name();
        Failure::wrong(
            "seq_num_mismatch",
            format!(
                "the connection was lost, and others append to {stream} so often that what was under way \
                 could not be appended in time"
            ),
        )
    }

    fn condition(self, condition: &AppendConditionFailed) -> Failure {
        let stream = self.stream_name();
        match condition {
            AppendConditionFailed::SeqNumMismatch(actual) => self.seq_num_mismatch(*actual),
            AppendConditionFailed::FencingTokenMismatch(actual) if actual.is_empty() => {
                Failure::wrong(
                    "fencing_token_mismatch",
                    format!("{stream} is not fenced: leave --fencing-token out"),
                )
            }
            AppendConditionFailed::FencingTokenMismatch(actual) => Failure::wrong(
                "fencing_token_mismatch",
                format!(
                    "the fencing token of {stream} is `{}`",
                    actual.escape_debug()
                ),
            ),
            other => Failure::wrong("client", other),
        }
    }

    fn client(self, error: &ClientError) -> Failure {
        match error {
            ClientError::ConnectionRefused(_) => self.unreachable("connection refused"),
            ClientError::Timeout => self.unreachable("it did not answer in time"),
            ClientError::ConnectionClosedEarly(_)
            | ClientError::UnexpectedEof(_)
            | ClientError::ConnectionReset(_)
            | ClientError::ConnectionAborted(_)
            | ClientError::RequestCanceled(_) => {
                self.unreachable("it closed the connection instead of answering")
            }
            ClientError::Connect(reason) => self.unreachable(reason),
            other => Failure::unreachable(
                "not_a_server",
                format!(
                    "what answers at {} is not a server of the S2 API: {other}",
                    self.address
                ),
            ),
        }
    }

    fn server(self, error: &ServerError) -> Failure {
        let basin = self.basin.map_or("of that name", |basin| basin);
        let stream = self.stream_name();
        let code = error.known_code();
        // What is no S2 server may refuse without a code, such as a proxy in front of one.
        let named = code
            .map(Into::into)
            .or_else(|| refusal::code_of(error.status.as_u16()));
        if let Some(refused) =
            named.and_then(|code| refusal::of(self.address, code, &error.message))
        {
            return refused;
        }
        let about_key =
            code == Some(ErrorCode::DecryptionFailed) || error.message.contains("encryption key");
        if about_key {
            let code = code.map_or("server", Into::into);
            let what = format!("the records of {stream} are encrypted: {}", error.message);
            return Failure::wrong(code, what).advise(
                "name the file of their key with --encryption-key-file, or set ESKER_ENCRYPTION_KEY",
            );
        }
        let message = match code {
            Some(ErrorCode::BasinNotFound) => match self.stream {
                Some(_) => format!(
                    "there is no basin {basin}; `esker stream create {stream}` makes the basin and \
                     the stream"
                ),
                None => format!(
                    "there is no basin {basin}; `esker stream create {basin}` makes it, \
                     `esker stream ls` shows those that there are"
                ),
            },
            Some(ErrorCode::StreamNotFound) if basin == "esker-state" => format!(
                "there is no stream {stream}; the state store makes esker-state/default with its first \
                 commit: `esker state put` makes one"
            ),
            Some(ErrorCode::StreamNotFound) => format!(
                "there is no stream {stream}; `esker stream create {stream}` makes it, \
                 `esker stream ls {basin}` shows those that there are"
            ),
            Some(ErrorCode::BasinDeletionPending) => {
                format!("basin {basin} is being deleted; try again when it is gone")
            }
            Some(ErrorCode::StreamDeletionPending) => {
                format!("{stream} is being deleted; try again when it is gone")
            }
            Some(ErrorCode::ServerDraining | ErrorCode::HotServer) => {
                format!("{}; nothing happened, try again", error.message)
            }
            _ => error.message.clone(),
        };
        Failure::wrong(code.map_or("server", Into::into), message)
    }

    fn stream_name(self) -> String {
        self.stream
            .map_or_else(|| "the stream".to_owned(), ToString::to_string)
    }
}
