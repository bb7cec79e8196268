//! Raw requests over HTTP/1.1 and HTTP/2 with prior knowledge.
//!
//! Each [`Http`] has one connection, opened when it is needed; over HTTP/1.1 it opens another one while an
//! answer is still under way on the first. [`Request::send`] waits for the whole answer; [`Request::open`]
//! gives the answer's head and its body as it arrives, and lets the caller continue to send.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{SOON, soon, tls};

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Body = BoxBody<Bytes, Infallible>;

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Both.
pub const TRANSPORTS: [Transport; 2] = [Transport::Http1, Transport::Http2];

/// The error of a request without an answer: the connection could not be opened, or was lost.
pub type Lost = Box<dyn std::error::Error + Send + Sync>;

enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// A client of one server.
pub struct Http {
    address: String,
    transport: Transport,
    /// Flow control windows of HTTP/2: of one stream, and of the connection.
    windows: Option<(u32, u32)>,
    /// What TLS trusts; `None` for cleartext.
    tls: Option<Arc<ClientConfig>>,
    /// The access token of all requests.
    token: Option<String>,
    connection: Mutex<Option<Connection>>,
}

impl Http {
    /// A client of the server at `address`.
    pub fn new(address: &str, transport: Transport) -> Http {
        Http {
            address: address.to_owned(),
            transport,
            windows: None,
            tls: None,
            token: None,
            connection: Mutex::new(None),
        }
    }

    /// The same over TLS.
    pub fn with_tls(mut self, config: Arc<ClientConfig>) -> Http {
        self.tls = Some(config);
        self
    }

    /// Like [`Http::new`] over HTTP/2, with flow control windows of `window` bytes.
    pub fn with_window(address: &str, window: u32) -> Http {
        Http {
            windows: Some((window, window.max(65_535))),
            ..Http::new(address, Transport::Http2)
        }
    }

    /// The same, with an access token in each request.
    pub fn with_token(self, token: &str) -> Http {
        Http {
            token: Some(token.to_owned()),
            ..self
        }
    }

    /// A GET.
    pub fn get(&self, path: &str) -> Request<'_> {
        self.request(Method::GET, path)
    }

    /// A POST.
    pub fn post(&self, path: &str) -> Request<'_> {
        self.request(Method::POST, path)
    }

    /// A PUT.
    pub fn put(&self, path: &str) -> Request<'_> {
        self.request(Method::PUT, path)
    }

    /// A PATCH.
    pub fn patch(&self, path: &str) -> Request<'_> {
        self.request(Method::PATCH, path)
    }

    /// A DELETE.
    pub fn delete(&self, path: &str) -> Request<'_> {
        self.request(Method::DELETE, path)
    }

    /// Any request.
    pub fn request(&self, method: Method, path: &str) -> Request<'_> {
        let request = Request {
            http: self,
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        match &self.token {
            Some(token) => request.header("authorization", &format!("Bearer {token}")),
            None => request,
        }
    }

    async fn dispatch(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, Lost> {
        let mut slot = self.connection.lock().await;
        let usable = match slot.as_mut() {
            // HTTP/1.1 cannot share a connection, so one with an answer under way is not used. After the end of an
            // answer it takes a moment until the connection is free.
            Some(Connection::Http1(sender)) => {
                tokio::time::timeout(Duration::from_millis(100), sender.ready())
                    .await
                    .is_ok_and(|ready| ready.is_ok())
            }
            Some(Connection::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *slot = Some(self.connect().await?);
        }
        match slot.as_mut().unwrap() {
            Connection::Http1(sender) => {
                let answer = sender.send_request(request);
                drop(slot);
                Ok(answer.await?)
            }
            Connection::Http2(sender) => {
                let mut sender = sender.clone();
                drop(slot);
                Ok(sender.send_request(request).await?)
            }
        }
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, Lost> {
        if let Some(config) = &self.tls {
            let protocol = match self.transport {
                Transport::Http1 => "http/1.1",
                Transport::Http2 => "h2",
            };
            let stream = tls::connect(&self.address, config, &[protocol]).await?;
            assert_eq!(
                stream.get_ref().1.alpn_protocol(),
                Some(protocol.as_bytes())
            );
            return Ok(Box::new(stream));
        }
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn connect(&self) -> Result<Connection, Lost> {
        let io = TokioIo::new(self.stream().await?);
        match self.transport {
            Transport::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Ok(Connection::Http1(sender))
            }
            Transport::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                if let Some((stream, connection)) = self.windows {
                    builder
                        .initial_stream_window_size(stream)
                        .initial_connection_window_size(connection);
                }
                let (sender, connection) = builder.handshake(io).await?;
                tokio::spawn(connection);
                Ok(Connection::Http2(sender))
            }
        }
    }
}

/// A request that is not sent yet.
pub struct Request<'a> {
    http: &'a Http,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Request<'_> {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers
            .append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    /// Sets the basin.
    pub fn basin(self, name: &str) -> Self {
        self.header("s2-basin", name)
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to JSON.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json")
            .body(body.to_string())
    }

    /// Sets the body to a message.
    pub fn proto(self, message: &impl prost::Message) -> Self {
        self.header("content-type", "application/protobuf")
            .body(message.encode_to_vec())
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Panics
    ///
    /// If none comes.
    pub async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.path);
        soon(&what, self.try_send())
            .await
            .unwrap_or_else(|e| panic!("{what}: {e:?}"))
    }

    /// Like [`Request::send`], but a lost connection is an error.
    pub async fn try_send(self) -> Result<Answer, Lost> {
        let http = self.http;
        let body = http_body_util::Full::new(self.body.clone()).boxed();
        let response = self.dispatch(body).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        if http.transport == Transport::Http1 && !head.status.is_success() {
            // The request may have been refused before it was read completely; the connection cannot be used
            // again then.
            http.connection.lock().await.take();
        }
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// Sends the head and the body so far, and leaves the request open.
    ///
    /// # Panics
    ///
    /// If no head of an answer comes.
    pub async fn open(self) -> Exchange {
        let what = format!("{} {}", self.method, self.path);
        let (to_server, frames) = mpsc::channel(16);
        if !self.body.is_empty() {
            to_server.send(self.body.clone()).await.unwrap();
        }
        let frames = ReceiverStream::new(frames).map(|bytes| Ok(Frame::data(bytes)));
        let body = BodyExt::boxed(StreamBody::new(frames));
        let http = self.http;
        let response = soon(&what, self.dispatch(body))
            .await
            .unwrap_or_else(|e| panic!("{what}: {e:?}"));
        if http.transport == Transport::Http1 {
            // No other request uses this connection.
            http.connection.lock().await.take();
        }
        let (head, body) = response.into_parts();
        Exchange {
            status: head.status,
            headers: head.headers,
            to_server: Some(to_server),
            body,
        }
    }

    /// Sends the whole request, and leaves the answer open.
    ///
    /// # Panics
    ///
    /// If no head of an answer comes.
    pub async fn ask(self) -> Exchange {
        let what = format!("{} {}", self.method, self.path);
        let body = http_body_util::Full::new(self.body.clone()).boxed();
        let response = soon(&what, self.dispatch(body))
            .await
            .unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let (head, body) = response.into_parts();
        Exchange {
            status: head.status,
            headers: head.headers,
            to_server: None,
            body,
        }
    }

    async fn dispatch(self, body: Body) -> Result<http::Response<Incoming>, Lost> {
        let address = &self.http.address;
        let uri = match self.http.transport {
            Transport::Http1 => self.path,
            Transport::Http2 => format!("http://{address}{}", self.path),
        };
        let mut request = http::Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = uri.parse().unwrap();
        *request.headers_mut() = self.headers;
        if self.http.transport == Transport::Http1 && !request.headers().contains_key("host") {
            request
                .headers_mut()
                .insert("host", address.parse().unwrap());
        }
        self.http.dispatch(request).await
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as a message.
    pub fn proto<M: prost::Message + Default>(&self) -> M {
        M::decode(&self.body[..]).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    /// The code of an error.
    ///
    /// # Panics
    ///
    /// If the body is not an error with a code and a message.
    pub fn code(&self) -> String {
        let body = self.json();
        let message = body["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "no message: {} {body}", self.status);
        body["code"].as_str().unwrap().to_owned()
    }

    /// Fails the test unless the status is this.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    /// Fails the test unless the status and the code are these.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.code(), code, "{}", self.text());
        self
    }
}

/// A request whose answer has begun.
pub struct Exchange {
    /// Status of the answer.
    pub status: StatusCode,
    /// Headers of the answer.
    pub headers: HeaderMap,
    to_server: Option<mpsc::Sender<Bytes>>,
    body: Incoming,
}

impl Exchange {
    /// Sends more of the request. Returns whether the server still accepts it.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        let to_server = self.to_server.as_ref().unwrap();
        to_server.send(bytes.into()).await.is_ok()
    }

    /// Ends the request; the answer may continue.
    pub fn finish(&mut self) {
        self.to_server = None;
    }

    /// The next piece of the answer; `None` at its end.
    ///
    /// # Panics
    ///
    /// If neither arrives soon.
    pub async fn chunk(&mut self) -> Option<Bytes> {
        self.chunk_within(SOON)
            .await
            .expect("a piece of the answer or its end")
    }

    /// Like [`Exchange::chunk`], but an error if nothing arrives in time.
    pub async fn chunk_within(
        &mut self,
        time: Duration,
    ) -> Result<Option<Bytes>, tokio::time::error::Elapsed> {
        tokio::time::timeout(time, async {
            loop {
                match self.body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data()
                            && !data.is_empty()
                        {
                            return Some(data);
                        }
                    }
                    // A test cannot rely on the end of a truncated answer.
                    Some(Err(error)) => panic!("the answer was cut short: {error:?}"),
                    None => return None,
                }
            }
        })
        .await
    }

    /// All the rest of the answer, and how it ended.
    pub async fn rest(mut self) -> Result<Bytes, hyper::Error> {
        self.to_server = None;
        let collected = soon("the rest of an answer", self.body.collect()).await;
        collected.map(http_body_util::Collected::to_bytes)
    }

    /// The trailers after the rest of the answer's body.
    ///
    /// # Panics
    ///
    /// If the answer is cut short.
    pub async fn trailers(mut self) -> HeaderMap {
        self.to_server = None;
        let collected = soon("the rest of an answer", self.body.collect()).await;
        let collected = collected.expect("the answer's end");
        collected.trailers().cloned().expect("trailers")
    }
}
