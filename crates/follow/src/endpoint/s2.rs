//! Streams of real servers, through the official client.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use s2_sdk::append_session::{AppendSessionConfig, BatchSubmitTicket};
use s2_sdk::error::{
    AppendConditionFailed, AppendError, AppendSessionError, ReadError, ReadSessionError,
    RequestError,
};
use s2_sdk::read_session::ReadSession;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, BasinName, EncryptionKey, FencingToken,
    ListStreamsInput, ReadFrom, ReadInput, ReadSessionConfig, ReadStart, RetentionPolicy,
    RetryConfig, S2Config, S2Endpoints, StreamName, StreamNamePrefix,
};
use s2_sdk::{S2, S2Basin, S2Stream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;

use super::position::{self, Position};
use super::{AppendFailed, Endpoint, EndpointError, Identity, Piece, Sharing};
use crate::error::Error;

/// Bytes of a snapshot in many records that are sent and not yet acknowledged: 8 batches of 1 MiB keep a
/// connection busy.
const UNACKED: u32 = 8 << 20;
/// The same in batches.
const WINDOW: usize = 8;
/// While others append to the stream, their appends wait behind those of a snapshot. So one batch at a
/// time is sent then, and after each a pause this many times as long as the batch took: the snapshot uses
/// a quarter of what the stream takes.
const PAUSE: u32 = 3;
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// Batches in a row without a record of others in between, after which the others count as gone.
const ALONE: u32 = 16;

/// A stream of a server.
#[derive(Debug, Clone)]
pub struct S2Endpoint {
    /// For requests and appends.
    basin: S2Basin,
    /// For read sessions, and for appends without a condition: it does not reconnect by itself, because
    /// after that the identity of the stream has to be checked first.
    once: S2Basin,
    basin_name: BasinName,
    name: StreamName,
    server: Option<Server>,
    /// The access token that is sent to it.
    token: Option<Token>,
    trusts_name: bool,
    encryption: Option<EncryptionKey>,
    fencing: Option<FencingToken>,
}

/// An access token, which debug output leaves out.
#[derive(Clone)]
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The server for requests that only Esker answers.
#[derive(Debug, Clone)]
struct Server {
    url: Url,
    /// The client, or why there is none.
    http: Result<reqwest::Client, String>,
}

impl Server {
    fn new(url: Url) -> Server {
        // Over plain http there are no certificates. This option avoids reading those of the system, which
        // is slow, and fails where there are none. The client for streams takes no proxy either.
        let http = reqwest::Client::builder()
            .no_proxy()
            // Another server knows nothing about this stream, and would not get the token.
            .redirect(reqwest::redirect::Policy::none())
            .tls_danger_accept_invalid_certs(url.scheme() == "http")
            .build();
        Server {
            http: http.map_err(|e| format!("no client for {url}: {e}")),
            url,
        }
    }
}

/// Whether the text of a token is one that an Esker has issued.
fn is_of_esker(token: &str) -> bool {
    token.starts_with("esk_")
}

impl S2Endpoint {
    /// A stream, through clients of this configuration.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a configuration that makes no client.
    pub fn new(
        config: S2Config,
        basin: BasinName,
        stream: StreamName,
    ) -> Result<S2Endpoint, Error> {
        let invalid = |e: RequestError| Error::Invalid(e.to_string());
        let once = RetryConfig::new().with_max_attempts(NonZeroU32::MIN);
        let once = S2::new(config.clone().with_retry(once)).map_err(invalid)?;
        let s2 = S2::new(config).map_err(invalid)?;
        Ok(S2Endpoint {
            basin: s2.basin(basin.clone()),
            once: once.basin(basin.clone()),
            basin_name: basin,
            name: stream,
            server: None,
            token: None,
            trusts_name: false,
            encryption: None,
            fencing: None,
        })
    }

    /// A stream by its address, `s2://basin/stream`, configured by the variables of the official command
    /// line: `S2_ACCESS_TOKEN`, `S2_ACCOUNT_ENDPOINT`, `S2_BASIN_ENDPOINT`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an address or a variable that makes no sense; for a token that an Esker has issued,
    /// without the endpoints of one: it would go to hosted S2.
    pub fn from_env(address: &str) -> Result<S2Endpoint, Error> {
        let invalid = |e: &dyn std::fmt::Display| Error::Invalid(e.to_string());
        let wanted =
            || Error::Invalid(format!("`{address}` is no stream: write s2://BASIN/STREAM"));
        let rest = address.strip_prefix("s2://").ok_or_else(wanted)?;
        let (basin, stream) = rest.split_once('/').ok_or_else(wanted)?;
        let basin: BasinName = basin.parse().map_err(|e| invalid(&e))?;
        let stream: StreamName = stream.parse().map_err(|e| invalid(&e))?;
        let account = std::env::var("S2_ACCOUNT_ENDPOINT").ok();
        let endpoints = match account {
            Some(_) => S2Endpoints::from_env().map_err(|e| invalid(&e))?,
            None => S2Endpoints::for_cloud(),
        };
        // Self-hosted servers require no token, but the client does.
        let token = std::env::var("S2_ACCESS_TOKEN").ok();
        if account.is_none() && token.as_ref().is_some_and(|it| is_of_esker(it)) {
            return Err(Error::Invalid(
                "S2_ACCESS_TOKEN is a token of an Esker, which is not sent to hosted S2: set S2_ACCOUNT_ENDPOINT and \
                 S2_BASIN_ENDPOINT"
                    .to_owned(),
            ));
        }
        let config = S2Config::new(token.clone().unwrap_or_else(|| "none".to_owned()));
        let endpoint = S2Endpoint::new(config.with_endpoints(endpoints), basin, stream)?;
        let endpoint = match token {
            Some(token) => endpoint.with_access_token(token),
            None => endpoint,
        };
        Ok(match account.as_deref().map(Url::parse) {
            Some(Ok(url)) => endpoint.with_server(url),
            _ => endpoint,
        })
    }

    /// The server for requests that only Esker answers: `http://127.0.0.1:7070`. Without it, or if it is
    /// another server, only trims explain jumps in the sequence numbers.
    #[must_use]
    pub fn with_server(self, server: Url) -> S2Endpoint {
        S2Endpoint {
            server: Some(Server::new(server)),
            ..self
        }
    }

    /// The access token for that server.
    #[must_use]
    pub fn with_access_token(self, token: impl Into<String>) -> S2Endpoint {
        S2Endpoint {
            token: Some(Token(token.into())),
            ..self
        }
    }

    /// Also follows a stream that the server does not permit this client to identify (the permission to
    /// list streams, to see their configuration, or to ask for their position is missing). A stream that
    /// was deleted and created again then counts as the same one, and its retention as endless. By
    /// default such a stream is not followed.
    #[must_use]
    pub fn trusting_the_name(self) -> S2Endpoint {
        S2Endpoint {
            trusts_name: true,
            ..self
        }
    }

    /// The key that records are encrypted with.
    #[must_use]
    pub fn with_encryption_key(self, key: EncryptionKey) -> S2Endpoint {
        S2Endpoint {
            encryption: Some(key),
            ..self
        }
    }

    /// The fencing token that snapshots and trims are appended with.
    #[must_use]
    pub fn with_fencing_token(self, token: FencingToken) -> S2Endpoint {
        S2Endpoint {
            fencing: Some(token),
            ..self
        }
    }

    fn stream(&self) -> S2Stream {
        self.of(&self.basin)
    }

    fn of(&self, basin: &S2Basin) -> S2Stream {
        let stream = basin.stream(self.name.clone());
        match &self.encryption {
            Some(key) => stream.with_encryption_key(key.clone()),
            None => stream,
        }
    }

    fn input(&self, batch: Vec<AppendRecord>) -> Result<AppendInput, AppendFailed> {
        let batch = AppendRecordBatch::try_from_iter(batch);
        let batch = batch.map_err(|e| AppendFailed::Refused(e.to_string()))?;
        let input = AppendInput::new(batch);
        Ok(match &self.fencing {
            Some(token) => input.with_fencing_token(token.clone()),
            None => input,
        })
    }

    async fn created_at(&self) -> Result<Option<String>, EndpointError> {
        let Ok(prefix) = self.name.to_string().parse::<StreamNamePrefix>() else {
            return Ok(None);
        };
        // The stream itself comes first among the names that begin with its own.
        let input = ListStreamsInput::new().with_prefix(prefix).with_limit(1);
        match self.basin.list_streams(input).await {
            Ok(page) => {
                let info = page.values.into_iter().find(|info| info.name == self.name);
                Ok(info.map(|info| info.created_at.to_string()))
            }
            Err(error) => self.unknown("list streams", &error),
        }
    }

    async fn retention(&self) -> Result<Option<Duration>, EndpointError> {
        match self.basin.get_stream_config(self.name.clone()).await {
            Ok(config) => Ok(config.retention_policy.and_then(|policy| match policy {
                RetentionPolicy::Age(seconds) => Some(Duration::from_secs(seconds)),
                _ => None,
            })),
            Err(error) => self.unknown("see the stream's configuration", &error),
        }
    }

    async fn position(&self) -> Result<Option<Position>, EndpointError> {
        let Some(Server { url, http }) = &self.server else {
            return Ok(None);
        };
        let http = http.as_ref();
        let http = http.map_err(|e| EndpointError::Refused(e.clone()))?;
        let token = self.token.as_ref().map(|token| &*token.0);
        match position::ask(http, url, token, &self.basin_name, &self.name).await {
            Err(EndpointError::Denied(_)) if self.trusts_name => Ok(None),
            other => other,
        }
    }

    fn unknown<T>(&self, what: &str, error: &RequestError) -> Result<Option<T>, EndpointError> {
        let status = error.server_error().map(|e| e.status.as_u16());
        self.unknown_answer(what, status, of_request(error))
    }

    /// The result if the server does not return a part of the identity: `None` only if the server has no
    /// such operation, or the name is trusted.
    fn unknown_answer<T>(
        &self,
        what: &str,
        status: Option<u16>,
        error: EndpointError,
    ) -> Result<Option<T>, EndpointError> {
        match status {
            Some(404 | 405 | 501) => Ok(None),
            Some(401 | 403) if self.trusts_name => Ok(None),
            Some(401 | 403) => Err(EndpointError::Denied(format!(
                "the server does not allow to {what}: {error}"
            ))),
            _ => Err(error),
        }
    }
}

#[async_trait]
impl Endpoint for S2Endpoint {
    fn shown(&self) -> String {
        format!("s2://{}/{}", self.basin_name, self.name)
    }

    async fn identity(&self) -> Result<Identity, EndpointError> {
        let (created_at, retention, position) =
            tokio::try_join!(self.created_at(), self.retention(), self.position())?;
        let (lineage, forks, gaps) =
            position.map_or_else(Default::default, |p| (Some(p.lineage), p.forks, p.gaps));
        Ok(Identity {
            created_at,
            lineage,
            forks,
            gaps,
            retention,
        })
    }

    async fn tail(&self) -> Result<u64, EndpointError> {
        let tail = self.stream().check_tail().await;
        tail.map(|tail| tail.seq_num).map_err(|e| of_read(&e))
    }

    async fn append(&self, batch: Vec<AppendRecord>, at: Option<u64>) -> Result<u64, AppendFailed> {
        let input = self.input(batch)?;
        let appended = match at {
            Some(at) => self.stream().append(input.with_match_seq_num(at)).await,
            None => self.of(&self.once).append(input).await,
        };
        match appended {
            Ok(ack) => Ok(ack.start.seq_num),
            Err(error) => Err(of_append(error)),
        }
    }

    async fn append_all(
        &self,
        mut batches: mpsc::Receiver<Vec<AppendRecord>>,
        sharing: &Sharing,
    ) -> Result<(), AppendFailed> {
        let config = AppendSessionConfig::new()
            .with_max_unacked_bytes(UNACKED)
            .map_err(|e| AppendFailed::Refused(e.to_string()))?;
        let session = self.stream().append_session(config);
        let mut flying: VecDeque<(Instant, BatchSubmitTicket)> = VecDeque::new();
        let mut next = None;
        // Batches until the others count as gone.
        let mut others: u32 = 0;
        while let Some(batch) = batches.recv().await {
            let window = if others > 0 { 1 } else { WINDOW };
            while flying.len() >= window
                && let Some((sent, ticket)) = flying.pop_front()
            {
                let ack = ticket.await.map_err(of_session)?;
                let is_next = next.is_none_or(|next| next == ack.start.seq_num);
                next = Some(ack.end.seq_num);
                others = if is_next {
                    others.saturating_sub(1)
                } else {
                    ALONE
                };
                sharing.set(others > 0);
                if others > 0 && flying.is_empty() {
                    let pause = sent.elapsed() * PAUSE;
                    tokio::time::sleep(pause.min(MAX_PAUSE)).await;
                }
            }
            let input = self.input(batch)?;
            let sent = Instant::now();
            let ticket = session.submit(input).await.map_err(of_session)?;
            flying.push_back((sent, ticket));
        }
        session.close().await.map_err(of_session)
    }

    fn read(&self, from: u64) -> BoxStream<'static, Result<Piece, EndpointError>> {
        let stream = self.of(&self.once);
        Box::pin(async_stream::try_stream! {
            let start = ReadStart::new().with_from(ReadFrom::SeqNum(from));
            let input = ReadInput::new().with_start(start);
            let session = stream.read_session(input, ReadSessionConfig::new()).await;
            let mut session = session.map_err(|e| of_read_session(&e))?;
            let mut told = None;
            // A tail that comes without records is no item of the session.
            let tail_of = |session: &ReadSession| {
                let tail = session.caught_up().now_or_never().and_then(Result::ok);
                tail.map(|tail| tail.seq_num)
            };
            loop {
                let piece = std::future::poll_fn(|cx| match session.poll_next_unpin(cx) {
                    Poll::Ready(item) => Poll::Ready(item.map(|item| item.map(|b| b.records))),
                    Poll::Pending => match tail_of(&session) {
                        Some(tail) if told != Some(tail) => Poll::Ready(Some(Ok(Vec::new()))),
                        _ => Poll::Pending,
                    },
                });
                let Some(records) = piece.await else { break };
                let records = records.map_err(|e| of_read_session(&e))?;
                let tail = tail_of(&session);
                told = tail;
                yield Piece { records, tail };
            }
        })
    }
}

fn of_request(error: &RequestError) -> EndpointError {
    match error.is_retryable() {
        true => EndpointError::Unavailable(error.to_string()),
        false => EndpointError::Refused(error.to_string()),
    }
}

fn of_read(error: &ReadError) -> EndpointError {
    match error {
        ReadError::ReadUnwritten(tail) => EndpointError::BeyondTail { tail: tail.seq_num },
        ReadError::Request(error) => of_request(error),
        other => EndpointError::Refused(other.to_string()),
    }
}

fn of_read_session(error: &ReadSessionError) -> EndpointError {
    match error {
        ReadSessionError::Read(error) => of_read(error),
        other => EndpointError::Unavailable(other.to_string()),
    }
}

fn of_append(error: AppendError) -> AppendFailed {
    match error {
        AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(tail)) => {
            AppendFailed::Elsewhere { tail }
        }
        AppendError::ConditionFailed(AppendConditionFailed::FencingTokenMismatch(token)) => {
            AppendFailed::Fenced(token.to_string())
        }
        // An earlier attempt may have been the success that makes this one fail.
        AppendError::IndefiniteFailure {
            final_attempt_error,
        } => match of_append(*final_attempt_error) {
            AppendFailed::Refused(why) => AppendFailed::Unknown(why),
            other => other,
        },
        error if error.has_no_side_effects() => AppendFailed::Refused(error.to_string()),
        // The server refuses the request itself: another attempt would not help.
        AppendError::Request(RequestError::Server(error)) if error.status.is_client_error() => {
            AppendFailed::Refused(error.to_string())
        }
        error => AppendFailed::Unknown(error.to_string()),
    }
}

fn of_session(error: AppendSessionError) -> AppendFailed {
    match error {
        AppendSessionError::Append(error) => of_append(error),
        other => AppendFailed::Unknown(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_token_of_an_esker_is_told_from_one_of_hosted_s2() {
        assert!(is_of_esker("esk_abcdefghijklmnopqrstuvwxyz"));
        assert!(!is_of_esker("YAAAAAAAAABm"));
    }

    /// A server that answers every request for a position with this status.
    async fn server(status: u16) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let body = match status {
                    200 => r#"{"head":0,"tail":0,"lineage":"1"}"#,
                    _ => r#"{"code":"permission_denied","message":"no"}"#,
                };
                let answer = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                client.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        format!("http://{address}")
    }

    fn endpoint(url: &str) -> S2Endpoint {
        let config = S2Config::new("none")
            .with_endpoints(S2Endpoints::for_endpoint(url).unwrap())
            .with_insecure_skip_cert_verification(true);
        let (basin, stream) = ("my-basin".parse().unwrap(), "orders".parse().unwrap());
        let endpoint = S2Endpoint::new(config, basin, stream).unwrap();
        endpoint.with_server(url.parse().unwrap())
    }

    #[derive(Debug, PartialEq)]
    enum Told {
        Nothing,
        Something,
        Denied,
        Refused,
        Later,
    }

    fn told<T>(answer: Result<Option<T>, EndpointError>) -> Told {
        match answer {
            Ok(None) => Told::Nothing,
            Ok(Some(_)) => Told::Something,
            Err(EndpointError::Denied(_)) => Told::Denied,
            Err(EndpointError::Unavailable(_)) => Told::Later,
            Err(_) => Told::Refused,
        }
    }

    #[tokio::test]
    async fn debug_output_has_no_access_token() {
        let endpoint = endpoint("http://127.0.0.1:1").with_access_token("esk_abc");
        assert!(!format!("{endpoint:?}").contains("esk_abc"));
    }

    #[tokio::test]
    async fn a_lineage_that_is_not_told_is_not_no_lineage() {
        for (status, expected, by_choice) in [
            (200, Told::Something, Told::Something),
            (404, Told::Nothing, Told::Nothing),
            (405, Told::Nothing, Told::Nothing),
            (501, Told::Nothing, Told::Nothing),
            (401, Told::Denied, Told::Nothing),
            (403, Told::Denied, Told::Nothing),
            (429, Told::Later, Told::Later),
            (500, Told::Later, Told::Later),
            (503, Told::Later, Told::Later),
            (400, Told::Refused, Told::Refused),
            (307, Told::Refused, Told::Refused),
        ] {
            let url = server(status).await;
            let asked = endpoint(&url).position().await;
            assert_eq!(told(asked), expected, "{status}");
            let asked = endpoint(&url).trusting_the_name().position().await;
            assert_eq!(told(asked), by_choice, "{status}");
        }
    }

    #[tokio::test]
    async fn a_creation_or_a_retention_that_is_not_told_is_not_none() {
        let endpoint = endpoint("http://127.0.0.1:1");
        for (status, expected, by_choice) in [
            (404, Told::Nothing, Told::Nothing),
            (501, Told::Nothing, Told::Nothing),
            (401, Told::Denied, Told::Nothing),
            (403, Told::Denied, Told::Nothing),
            (500, Told::Later, Told::Later),
        ] {
            let error = || EndpointError::Unavailable("why".to_owned());
            let answer = endpoint.unknown_answer::<()>("list streams", Some(status), error());
            assert_eq!(told(answer), expected, "{status}");
            let endpoint = endpoint.clone().trusting_the_name();
            let answer = endpoint.unknown_answer::<()>("list streams", Some(status), error());
            assert_eq!(told(answer), by_choice, "{status}");
        }
    }
}
