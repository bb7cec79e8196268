//! Connections to other nodes: an address, the deadline of a connection, and TLS with the certificates of the moment.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::transport::{Channel, Endpoint, Error};

use super::tls::Tls;
use super::{CONNECTION_WINDOW, KEEP_ALIVE_INTERVAL, STREAM_WINDOW, chain};

/// Longest time until an address has accepted the connection, with the resolution of its name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How a node at an address is connected to.
pub(super) struct Dial {
    pub endpoint: Endpoint,
    target: Target,
}

#[derive(Clone)]
struct Target {
    host: String,
    port: u16,
    tls: Option<Arc<Tls>>,
}

impl Dial {
    /// How the node at an address, `host:port` or a URL, is connected to; or what is wrong with the address.
    pub fn to(address: &str, tls: Option<Arc<Tls>>) -> Result<Dial, String> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = match address.split_once("://") {
            None => format!("{scheme}://{address}"),
            Some((same, _)) if same.eq_ignore_ascii_case(scheme) => address.to_owned(),
            // With TLS configured, no address may lead to a connection without it.
            Some(_) => return Err(format!("the address has to begin with {scheme}://")),
        };
        let uri: Uri = url.parse().map_err(|e| chain(&e))?;
        let authority = uri.authority().ok_or("there is no host in it")?;
        let host = authority.host();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = if tls.is_some() { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(port);
        // The connector speaks TLS, not the endpoint: the certificates may change.
        let endpoint = Endpoint::from_shared(format!("http://{authority}"));
        let endpoint = endpoint
            .map_err(|e| chain(&e))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_INTERVAL)
            .keep_alive_while_idle(true);
        Ok(Dial {
            endpoint,
            target: Target { host, port, tls },
        })
    }

    /// Connects now.
    pub async fn connect(self) -> Result<Channel, Error> {
        let Dial { endpoint, target } = self;
        endpoint.connect_with_connector(target.connector()).await
    }

    /// Connects when the channel is first used, and again after a failure.
    pub fn connect_lazy(self) -> Channel {
        let Dial { endpoint, target } = self;
        endpoint.connect_with_connector_lazy(target.connector())
    }
}

impl Target {
    fn connector(
        self,
    ) -> impl tower::Service<Uri, Response = TokioIo<Stream>, Error = io::Error, Future: Send>
    + Send
    + 'static {
        tower::service_fn(move |_: Uri| {
            let target = self.clone();
            async move { Ok(TokioIo::new(target.connect().await?)) }
        })
    }

    async fn connect(self) -> io::Result<Stream> {
        let connecting = TcpStream::connect((&*self.host, self.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected?,
            Err(_) => {
                let why = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        };
        stream.set_nodelay(true)?;
        match self.tls {
            None => Ok(Stream::Plain(stream)),
            Some(tls) => {
                let stream = tls.connect(&self.host, stream).await?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// A connection, with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
