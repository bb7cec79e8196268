//! Load through plain HTTP/2, with the smallest possible client.
//!
//! One [`Connection`] is one TCP connection with HTTP/2 by prior knowledge and the same flow
//! control windows as the SDK has. Requests are encoded beforehand ([`Batch`]); of the answers
//! only acknowledgements are decoded.
//!
//! Received segments are acknowledged at once (`TCP_QUICKACK`). `s2 lite` leaves Nagle's algorithm
//! on: the last piece of an answer waits for the acknowledgement of the one before it, which
//! Linux delays by 40 ms. That would be nearly all of the time that a short read takes, and a
//! comparison of timers instead of servers.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    task::Poll,
};

use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures::channel::mpsc;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::{
    body::{Frame as BodyFrame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use s2_api::v1::stream::proto;
use s2_sdk::types::EncryptionKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Acked, Batch, Batches, ReadTotals, check_count, scan};

const PROTOBUF: &str = "application/protobuf";
const SESSION: &str = "s2s/proto";

type SessionBody = StreamBody<mpsc::Receiver<Result<BodyFrame<Bytes>, std::convert::Infallible>>>;
type Body = Either<Full<Bytes>, SessionBody>;

/// One TCP connection. Its operations are those of [`super::Connection`].
pub struct Connection {
    sender: http2::SendRequest<Body>,
    /// The connection's socket, to set options on.
    socket: Arc<OwnedFd>,
    authority: String,
    basin: String,
    /// The value of the header `authorization`.
    authorization: String,
    /// The key that records are encrypted with.
    key: Option<HeaderValue>,
}

impl Connection {
    pub async fn open(url: &str, basin: &str) -> anyhow::Result<Self> {
        let authority = url.strip_prefix("http://").context("not an http:// URL")?;
        let tcp = TcpStream::connect(authority)
            .await
            .with_context(|| format!("cannot connect to {authority}"))?;
        tcp.set_nodelay(true)?;
        let socket = tcp.as_fd().try_clone_to_owned()?;
        Self::on(tcp, socket, authority, basin).await
    }

    /// The same over TLS, to a server that has a certificate of this authority.
    pub async fn open_tls(url: &str, basin: &str, ca: &Path) -> anyhow::Result<Self> {
        let authority = url
            .strip_prefix("https://")
            .context("not an https:// URL")?;
        let config = testkit_server::tls::client(ca, None);
        let tls = testkit_server::tls::connect(authority, &config, &["h2"])
            .await
            .with_context(|| format!("cannot connect to {authority}"))?;
        let socket = tls.get_ref().0.as_fd().try_clone_to_owned()?;
        Self::on(tls, socket, authority, basin).await
    }

    async fn on(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        socket: OwnedFd,
        authority: &str,
        basin: &str,
    ) -> anyhow::Result<Self> {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // The task ends when the last sender is dropped, or with the connection.
        tokio::spawn(connection);
        let socket = Arc::new(socket);
        Ok(Self {
            sender,
            socket,
            authority: authority.to_owned(),
            basin: basin.to_owned(),
            authorization: "Bearer bench".to_owned(),
            key: None,
        })
    }

    /// Sends this access token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.authorization = format!("Bearer {token}");
        self
    }

    /// Sends this key with every request.
    pub fn with_encryption_key(mut self, key: &EncryptionKey) -> Self {
        self.key = Some(key.to_header_value());
        self
    }

    /// Makes the basin of the connection.
    pub async fn create_basin(&self) -> anyhow::Result<()> {
        let body = format!("{{\"basin\":\"{}\"}}", self.basin);
        let request = self
            .request(Method::POST, "/v1/basins")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Either::Left(Full::new(body.into())))?;
        unary(&self.sender, request)
            .await
            .with_context(|| format!("cannot create the basin {}", self.basin))?;
        Ok(())
    }

    /// Has an access token issued, and returns its text.
    pub async fn issue_token(&self, request: &serde_json::Value) -> anyhow::Result<String> {
        let request = self
            .request(Method::POST, "/v1/access-tokens")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Either::Left(Full::new(request.to_string().into())))?;
        let answer = unary(&self.sender, request).await;
        let answer = answer.context("cannot issue an access token")?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        let text = answer["access_token"].as_str();
        Ok(text.context("no token in the answer")?.to_owned())
    }

    pub async fn create_stream(&self, name: &str) -> anyhow::Result<()> {
        let body = format!("{{\"stream\":\"{name}\"}}");
        let request = self
            .request(Method::POST, "/v1/streams")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Either::Left(Full::new(body.into())))?;
        unary(&self.sender, request)
            .await
            .with_context(|| format!("cannot create the stream {name}"))?;
        Ok(())
    }

    pub async fn delete_stream(&self, name: &str) -> anyhow::Result<()> {
        let request = self
            .request(Method::DELETE, &format!("/v1/streams/{name}"))
            .body(Either::Left(Full::new(Bytes::new())))?;
        unary(&self.sender, request)
            .await
            .with_context(|| format!("cannot delete the stream {name}"))?;
        Ok(())
    }

    pub fn stream(&self, name: &str) -> Stream {
        Stream {
            connection: Self {
                sender: self.sender.clone(),
                socket: self.socket.clone(),
                authority: self.authority.clone(),
                basin: self.basin.clone(),
                authorization: self.authorization.clone(),
                key: self.key.clone(),
            },
            // The names that the bench gives need no percent-encoding.
            records: format!("/v1/streams/{name}/records"),
        }
    }

    /// The next piece of a body; `None` at its end.
    async fn next_data(&self, body: &mut Incoming) -> anyhow::Result<Option<Bytes>> {
        loop {
            let mut frame = body.frame();
            let frame = match futures::poll!(&mut frame) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    // The kernel resets this option at any time. Setting it sends a delayed acknowledgement.
                    rustix::net::sockopt::set_tcp_quickack(&self.socket, true)?;
                    frame.await
                }
            };
            let Some(frame) = frame else { break };
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header("s2-basin", &self.basin)
            .header(header::AUTHORIZATION, &self.authorization);
        if let Some(key) = &self.key {
            request = request.header("s2-encryption-key", key);
        }
        request
    }
}

/// A stream, seen through a connection. Its operations are those of [`super::Stream`].
pub struct Stream {
    connection: Connection,
    records: String,
}

impl Stream {
    pub async fn tail(&self) -> anyhow::Result<u64> {
        let request = self
            .connection
            .request(Method::GET, &format!("{}/tail", self.records))
            .body(Either::Left(Full::new(Bytes::new())))?;
        let answer = unary(&self.connection.sender, request).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        answer["tail"]["seq_num"]
            .as_u64()
            .with_context(|| format!("no tail in {answer}"))
    }

    pub async fn append(&self, batch: &Batch) -> anyhow::Result<Acked> {
        let request = self
            .connection
            .request(Method::POST, &self.records)
            .header(header::CONTENT_TYPE, PROTOBUF)
            .header(header::ACCEPT, PROTOBUF)
            .body(Either::Left(Full::new(batch.unary())))?;
        acked(unary(&self.connection.sender, request).await?)
    }

    pub async fn session(
        &self,
        batches: &Batches,
        in_flight: usize,
        mut go_on: impl FnMut(usize) -> bool,
        mut on_ack: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        ensure!(in_flight > 0, "nothing may be in flight");
        // The channel has room for all unacknowledged batches, so that sending never waits.
        let (mut frames, receiver) = mpsc::channel(in_flight);
        let request = self
            .connection
            .request(Method::POST, &self.records)
            .header(header::CONTENT_TYPE, SESSION)
            .body(Either::Right(StreamBody::new(receiver)))?;

        let mut submitted = 0;
        let mut acknowledged = 0;
        let mut open = true;
        let mut submit = |acknowledged: usize| -> anyhow::Result<usize> {
            while open && submitted - acknowledged < in_flight {
                open = go_on(submitted);
                if open {
                    let frame = batches.at(submitted).frame();
                    frames
                        .try_send(Ok(BodyFrame::data(frame)))
                        .context("the session ended early")?;
                    submitted += 1;
                } else {
                    frames.close_channel();
                }
            }
            Ok(submitted)
        };

        // The answer's head may come before or with the first acknowledgement.
        let mut total = submit(0)?;
        let response = self.connection.sender.clone().send_request(request).await?;
        let mut body = expect_success(response).await?;
        let mut buffer = BytesMut::new();
        let mut next = None;
        while acknowledged < total {
            let data = self
                .connection
                .next_data(&mut body)
                .await?
                .context("the session ended early")?;
            buffer.extend_from_slice(&data);
            while let Some(message) = scan::next_frame(&mut buffer)? {
                let acked = acked(message.freeze())?;
                let records = batches.at(acknowledged).records();
                check_count(acked, records)?;
                ensure!(
                    next.is_none_or(|next| next == acked.start),
                    "an acknowledgement begins at {}, not at {next:?}",
                    acked.start
                );
                next = Some(acked.end);
                acknowledged += 1;
                on_ack(records);
            }
            total = submit(acknowledged)?;
        }
        // A session that was closed by the client ends without a further message.
        while let Some(data) = self.connection.next_data(&mut body).await? {
            buffer.extend_from_slice(&data);
            ensure!(
                scan::next_frame(&mut buffer)?.is_none(),
                "an acknowledgement too many"
            );
        }
        Ok(())
    }

    pub async fn read(&self, start: u64, count: u64) -> anyhow::Result<ReadTotals> {
        let path = format!("{}?seq_num={start}&count={count}", self.records);
        let mut totals = ReadTotals::default();
        self.read_session(&path, start, &mut totals, |totals| totals.records < count)
            .await?;
        Ok(totals)
    }

    pub async fn follow(&self, mut go_on: impl FnMut(u64) -> bool) -> anyhow::Result<()> {
        let path = format!("{}?seq_num=0", self.records);
        let mut totals = ReadTotals::default();
        self.read_session(&path, 0, &mut totals, |totals| go_on(totals.records))
            .await
    }

    /// Counts the records of a session until `go_on` returns false; it is called first, and after each batch.
    async fn read_session(
        &self,
        path: &str,
        start: u64,
        totals: &mut ReadTotals,
        mut go_on: impl FnMut(&ReadTotals) -> bool,
    ) -> anyhow::Result<()> {
        let request = self
            .connection
            .request(Method::GET, path)
            .header(header::CONTENT_TYPE, SESSION)
            .body(Either::Left(Full::new(Bytes::new())))?;
        let response = self.connection.sender.clone().send_request(request).await?;
        let mut body = expect_success(response).await?;
        let mut buffer = BytesMut::new();
        let mut open = go_on(totals);
        while open {
            let data = self
                .connection
                .next_data(&mut body)
                .await?
                .context("the read ended early")?;
            buffer.extend_from_slice(&data);
            while let Some(message) = scan::next_frame(&mut buffer)? {
                scan::count_records(&message, start, totals)?;
                open = go_on(totals);
            }
        }
        Ok(())
    }
}

fn acked(message: Bytes) -> anyhow::Result<Acked> {
    let ack = proto::AppendAck::decode(message).context("malformed acknowledgement")?;
    let (Some(start), Some(end)) = (ack.start, ack.end) else {
        bail!("an acknowledgement without positions: {ack:?}");
    };
    Ok(Acked {
        start: start.seq_num,
        end: end.seq_num,
    })
}

async fn unary(sender: &http2::SendRequest<Body>, request: Request<Body>) -> anyhow::Result<Bytes> {
    let response = sender.clone().send_request(request).await?;
    Ok(expect_success(response).await?.collect().await?.to_bytes())
}

async fn expect_success(response: Response<Incoming>) -> anyhow::Result<Incoming> {
    let status = response.status();
    if matches!(status, StatusCode::OK | StatusCode::CREATED) {
        return Ok(response.into_body());
    }
    let body = response.into_body().collect().await?.to_bytes();
    bail!(
        "the server answered {status}: {}",
        String::from_utf8_lossy(&body)
    );
}
