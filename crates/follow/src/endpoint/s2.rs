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

use super::{AppendFailed, Endpoint, EndpointError, Identity, Piece, position};
use crate::error::Error;

/// Bytes that are sent and not yet acknowledged, of a snapshot in many records: 8 batches of 1 MiB keep a
/// connection busy.
const UNACKED: u32 = 8 << 20;
/// The same in batches.
const WINDOW: usize = 8;
/// While others append to the stream, their appends wait behind a snapshot's. So one batch at a time is
/// sent then, and after each a pause so many times as long as it took: a quarter of what the stream takes.
const PAUSE: u32 = 3;
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Batches without a record of others in between, until they count as gone.
const ALONE: u32 = 16;

/// A stream of a server.
#[derive(Debug, Clone)]
pub struct S2Endpoint {
    /// For what is asked and appended.
    basin: S2Basin,
    /// For read sessions: it does not connect again by itself, because the stream that is there then
    /// has to be looked at first.
    reading: S2Basin,
    basin_name: BasinName,
    name: StreamName,
    server: Option<Server>,
    encryption: Option<EncryptionKey>,
    fencing: Option<FencingToken>,
}

/// Where only Esker answers.
#[derive(Debug, Clone)]
struct Server {
    url: Url,
    /// Or why there is none.
    http: Result<reqwest::Client, String>,
}

impl Server {
    fn new(url: Url) -> Server {
        // Over plain http there are no certificates. To say so spares reading those of the system, which
        // is slow, and fails where there are none. The client for streams takes no proxy either.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(url.scheme() == "http")
            .build();
        Server {
            http: http.map_err(|e| format!("no client for {url}: {e}")),
            url,
        }
    }
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
        let reading = S2::new(config.clone().with_retry(once)).map_err(invalid)?;
        let s2 = S2::new(config).map_err(invalid)?;
        Ok(S2Endpoint {
            basin: s2.basin(basin.clone()),
            reading: reading.basin(basin.clone()),
            basin_name: basin,
            name: stream,
            server: None,
            encryption: None,
            fencing: None,
        })
    }

    /// A stream by its address, `s2://basin/stream`, with what the environment says: `S2_ACCESS_TOKEN`,
    /// `S2_ACCOUNT_ENDPOINT`, `S2_BASIN_ENDPOINT`, as for the official command line.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an address or a variable that makes no sense.
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
        // Servers of one's own ask for none; the client insists.
        let token = std::env::var("S2_ACCESS_TOKEN").unwrap_or_else(|_| "none".to_owned());
        let config = S2Config::new(token).with_endpoints(endpoints);
        let endpoint = S2Endpoint::new(config, basin, stream)?;
        Ok(match account.as_deref().map(Url::parse) {
            Some(Ok(url)) => endpoint.with_server(url),
            _ => endpoint,
        })
    }

    /// Where the server may be asked for what only Esker says: `http://127.0.0.1:7070`. Without it, or
    /// if it is another server, jumps in the sequence numbers are explained by trims alone.
    #[must_use]
    pub fn with_server(self, server: Url) -> S2Endpoint {
        S2Endpoint {
            server: Some(Server::new(server)),
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
            Err(error) if may_not(&error) => Ok(None),
            Err(error) => Err(of_request(&error)),
        }
    }

    async fn retention(&self) -> Result<Option<Duration>, EndpointError> {
        match self.basin.get_stream_config(self.name.clone()).await {
            Ok(config) => Ok(config.retention_policy.and_then(|policy| match policy {
                RetentionPolicy::Age(seconds) => Some(Duration::from_secs(seconds)),
                _ => None,
            })),
            Err(error) if may_not(&error) => Ok(None),
            Err(error) => Err(of_request(&error)),
        }
    }
}

#[async_trait]
impl Endpoint for S2Endpoint {
    fn shown(&self) -> String {
        format!("s2://{}/{}", self.basin_name, self.name)
    }

    async fn identity(&self) -> Result<Identity, EndpointError> {
        let position = async {
            match &self.server {
                Some(Server { url, http }) => {
                    let http = http
                        .as_ref()
                        .map_err(|e| EndpointError::Refused(e.clone()))?;
                    position::ask(http, url, &self.basin_name, &self.name).await
                }
                None => Ok(None),
            }
        };
        let (created_at, retention, position) =
            tokio::try_join!(self.created_at(), self.retention(), position)?;
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
        let mut input = self.input(batch)?;
        if let Some(at) = at {
            input = input.with_match_seq_num(at);
        }
        match self.stream().append(input).await {
            Ok(ack) => Ok(ack.start.seq_num),
            Err(error) => Err(of_append(error)),
        }
    }

    async fn append_all(
        &self,
        mut batches: mpsc::Receiver<Vec<AppendRecord>>,
    ) -> Result<(), AppendFailed> {
        let config = AppendSessionConfig::new()
            .with_max_unacked_bytes(UNACKED)
            .map_err(|e| AppendFailed::Refused(e.to_string()))?;
        let session = self.stream().append_session(config);
        let mut flying: VecDeque<(Instant, BatchSubmitTicket)> = VecDeque::new();
        let mut next = None;
        // Batches until others count as gone.
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
                if others > 0 && flying.is_empty() {
                    let pause = sent.elapsed() * PAUSE;
                    tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
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
        let stream = self.of(&self.reading);
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

fn may_not(error: &RequestError) -> bool {
    let status = error.server_error().map(|e| e.status.as_u16());
    matches!(status, Some(401 | 403 | 404 | 405 | 501))
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
        // A plain refusal of the request: it is not a matter of luck.
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
