//! Request bodies with a content coding: read whole, then decoded whole.
//!
//! A decoder that lives as long as its body arrives would hold a window of up to 128 MiB for each, and a client may
//! make it live for as long as it likes. So what arrives is held as it is, which [`bodies`](super::bodies) counts, and
//! is decoded at once. [`MAX_DECODING`] bodies are decoded at a time, each with a window of [`MAX_WINDOW`] bytes and
//! `limits.request-body` bytes of result at most, and others wait in turns by principal; what has been decoded counts
//! among bodies, until the request is answered.
//!
//! Append sessions have no coding as a whole: their frames name their own.

use std::time::Duration;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::ServiceError;
use esker_node::{Client, FairBudget, FairPermit, SharePolicy};

use super::bodies::{Bodies, Holds};
use super::body_budget::Full;
use crate::client::client;
use crate::request_guard::is_session;

/// Bodies that are decoded at a time: as many as processors could decode.
const MAX_DECODING: usize = 4;
/// The largest window of zstd, as a power of two: 8 MiB, which RFC 8878 asks decoders to have.
const MAX_WINDOW_LOG: u32 = 23;
/// The same in bytes.
#[cfg(test)]
const MAX_WINDOW: usize = 1 << MAX_WINDOW_LOG;
/// How long a body waits until others have been decoded.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes up to which the result is made on the thread that serves the connection: some 0.1 ms.
const INLINE: usize = 64 * 1024;
/// What is accepted, for the answer to what is not.
const ACCEPTED: HeaderValue = HeaderValue::from_static("zstd,gzip");

/// A content coding of request bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

/// A content coding that is not known, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownCoding;

/// Why a body was not decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecoded {
    #[error("the body has more than {0} bytes when it is decoded")]
    TooLarge(usize),
    #[error("the body is not whole, or not {0:?}: {1}")]
    Malformed(Coding, std::io::Error),
}

impl Coding {
    /// The coding that the header names; `None` if the body is as it is.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Coding>, UnknownCoding> {
        let mut named = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = match named.next().map(HeaderValue::as_bytes) {
            None | Some(b"identity") => None,
            Some(b"gzip") => Some(Coding::Gzip),
            Some(b"zstd") => Some(Coding::Zstd),
            Some(_) => return Err(UnknownCoding),
        };
        match named.next() {
            None => Ok(coding),
            Some(_) => Err(UnknownCoding),
        }
    }

    /// Decodes a whole body, of at most `most` bytes.
    pub(crate) async fn decode(self, coded: Bytes, most: usize) -> Result<Bytes, Undecoded> {
        let decoder: Box<dyn AsyncRead + Send + Unpin> = match self {
            Coding::Gzip => {
                let mut decoder = GzipDecoder::new(&coded[..]);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
            Coding::Zstd => {
                let window = DParameter::window_log_max(MAX_WINDOW_LOG);
                let mut decoder = ZstdDecoder::with_params(&coded[..], &[window]);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
        };
        let mut decoded = Vec::new();
        let mut decoder = decoder.take(most as u64 + 1);
        let read = decoder.read_to_end(&mut decoded).await;
        read.map_err(|e| Undecoded::Malformed(self, e))?;
        match decoded.len() <= most {
            true => Ok(decoded.into()),
            false => Err(Undecoded::TooLarge(most)),
        }
    }
}

/// What the decoding of bodies shares. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CodedBodies {
    bodies: Bodies,
    most: usize,
    places: FairBudget,
}

impl CodedBodies {
    /// Results have at most `most` bytes each, and count among `bodies`.
    pub(super) fn new(bodies: Bodies, most: usize) -> CodedBodies {
        CodedBodies {
            bodies,
            most,
            places: FairBudget::new(MAX_DECODING, SharePolicy::All),
        }
    }
}

/// The answer to a coding that is not accepted.
fn unsupported(why: ServiceError) -> Response {
    let mut answer = why.into_response();
    let headers = answer.headers_mut();
    headers.insert(header::ACCEPT_ENCODING, ACCEPTED);
    answer
}

/// Decodes the body of a request that has a content coding. To be called behind the admission of bodies.
pub async fn decode(State(shared): State<CodedBodies>, request: Request, next: Next) -> Response {
    let coding = match Coding::of(request.headers()) {
        Ok(None) => return next.run(request).await,
        Ok(Some(coding)) => coding,
        Err(UnknownCoding) => return unsupported(ServiceError::ContentEncoding),
    };
    if is_session(request.headers()) {
        return unsupported(ServiceError::CodedSession);
    }
    let holds = Holds::of(&request, &shared.bodies);
    let client = client(request.extensions());
    let (mut head, body) = request.into_parts();
    head.headers.remove(header::CONTENT_ENCODING);
    head.headers.remove(header::CONTENT_LENGTH);
    let body = match Limited::new(body, shared.most).collect().await {
        Ok(coded) => match shared
            .decode(coding, coded.to_bytes(), &holds, client)
            .await
        {
            Ok(decoded) => decoded.map(Body::from).map_err(|why| why.to_string()),
            Err(Full) => return ServiceError::BodiesFull.into_response(),
        },
        Err(why) => Err(why.to_string()),
    };
    // The handler refuses a body that fails as it refuses any that it cannot read.
    let body = body.unwrap_or_else(|why| {
        let failed = stream::once(async { Err::<Bytes, _>(std::io::Error::other(why)) });
        Body::from_stream(failed)
    });
    let answer = next.run(Request::from_parts(head, body)).await;
    drop(holds);
    answer
}

impl CodedBodies {
    /// Decodes a body, which counts then.
    ///
    /// # Errors
    ///
    /// There was no memory for it, or no turn, in time.
    async fn decode(
        &self,
        coding: Coding,
        coded: Bytes,
        holds: &Holds,
        client: Client,
    ) -> Result<Result<Bytes, Undecoded>, Full> {
        let bytes = {
            let _place = self.place(client).await?;
            match self.decode_now(coding, coded.clone()).await {
                Ok(decoded) if !holds.try_extend(decoded.len()) => decoded.len(),
                decoded => return Ok(decoded),
            }
        };
        // Whoever waits for memory has no place and no result meanwhile; its size is known.
        holds.extend(&self.bodies, client, bytes).await?;
        let _place = self.place(client).await?;
        Ok(self.decode_now(coding, coded).await)
    }

    async fn place(&self, client: Client) -> Result<FairPermit, Full> {
        let turn = self.places.take(client, 1, TURN_TIMEOUT).await;
        turn.map_err(|_| Full)
    }

    async fn decode_now(&self, coding: Coding, coded: Bytes) -> Result<Bytes, Undecoded> {
        let most = self.most;
        if most > INLINE {
            match coding.decode(coded.clone(), INLINE).await {
                Err(Undecoded::TooLarge(_)) => {}
                other => return other,
            }
        }
        let decoding = move || futures::executor::block_on(coding.decode(coded, most));
        tokio::task::spawn_blocking(decoding)
            .await
            .unwrap_or_else(|panicked| {
                Err(Undecoded::Malformed(
                    coding,
                    std::io::Error::other(panicked),
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
    use async_compression::zstd::CParameter;
    use axum::{Router, middleware, routing::post};
    use tokio::io::AsyncWriteExt as _;
    use tower::ServiceExt as _;

    use super::*;

    const MOST: usize = 1 << 20;

    async fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzipEncoder::new(Vec::new());
        encoder.write_all(plain).await.unwrap();
        encoder.shutdown().await.unwrap();
        encoder.into_inner()
    }

    async fn zstd(plain: &[u8], window: usize) -> Vec<u8> {
        let level = async_compression::Level::Precise(1);
        let parameters = [CParameter::window_log(window.ilog2())];
        let mut encoder = ZstdEncoder::with_quality_and_params(Vec::new(), level, &parameters);
        encoder.write_all(plain).await.unwrap();
        encoder.shutdown().await.unwrap();
        encoder.into_inner()
    }

    #[tokio::test]
    async fn a_body_is_decoded_up_to_its_limit_and_a_window_up_to_eight_mebibytes() {
        let plain = vec![7; MOST];
        for (coding, coded) in [
            (Coding::Gzip, gzip(&plain).await),
            (Coding::Zstd, zstd(&plain, MAX_WINDOW).await),
        ] {
            let coded = Bytes::from(coded);
            assert_eq!(coding.decode(coded.clone(), MOST).await.unwrap(), plain);
            let larger = coding.decode(coded.clone(), MOST - 1).await.unwrap_err();
            assert!(matches!(larger, Undecoded::TooLarge(_)), "{larger}");
            let half = coded.slice(..coded.len() / 2);
            let half = coding.decode(half, MOST).await.unwrap_err();
            assert!(matches!(half, Undecoded::Malformed(..)), "{half}");
            let twice = Bytes::from([coded.clone(), coded].concat());
            assert_eq!(
                coding.decode(twice, 2 * MOST).await.unwrap().len(),
                2 * MOST
            );
        }
        let wide = zstd(&plain, 2 * MAX_WINDOW).await;
        let wide = Coding::Zstd.decode(wide.into(), MOST).await.unwrap_err();
        assert!(matches!(wide, Undecoded::Malformed(..)), "{wide}");
    }

    #[tokio::test]
    async fn what_was_decoded_counts_until_the_answer_and_a_session_has_no_coding() {
        let bodies = Bodies::new(8 * MOST, MOST, TURN_TIMEOUT);
        let seen = bodies.clone();
        let handler = move |body: Body| {
            let held = seen.held();
            async move {
                format!(
                    "{held} {:?}",
                    body.collect().await.map(|it| it.to_bytes().len()).ok()
                )
            }
        };
        let coded = CodedBodies::new(bodies.clone(), MOST);
        let router = Router::new()
            .route("/", post(handler))
            .layer(middleware::from_fn_with_state(coded, decode));
        let ask = async |kind: &str, codings: &[&str], body: Vec<u8>| {
            let mut request = Request::post("/").header("content-type", kind);
            for coding in codings {
                request = request.header("content-encoding", *coding);
            }
            let request = request.body(Body::from(body)).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let (status, text) = (answer.status().as_u16(), answer.into_body().collect().await);
            (
                status,
                String::from_utf8_lossy(&text.unwrap().to_bytes()).into_owned(),
            )
        };
        let plain = vec![7; MOST];
        let whole = (200, format!("{MOST} Some({MOST})"));
        let json = "application/json";
        assert_eq!(ask(json, &["gzip"], gzip(&plain).await).await, whole);
        assert_eq!(
            ask(json, &["zstd"], zstd(&plain, 1 << 20).await).await,
            whole
        );
        let larger = vec![7; MOST + 1];
        assert_eq!(
            ask(json, &["gzip"], gzip(&larger).await).await,
            (200, "0 None".to_owned())
        );
        assert_eq!(ask(json, &["identity"], b"{}".to_vec()).await.0, 200);
        for codings in [&["gzip", "zstd"][..], &["gzip, zstd"], &["br"]] {
            assert_eq!(
                ask(json, codings, gzip(&plain).await).await.0,
                415,
                "{codings:?}"
            );
        }
        assert_eq!(
            ask("s2s/proto", &["zstd"], zstd(&plain, 1 << 20).await)
                .await
                .0,
            415
        );
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_for_memory_keeps_no_place_from_others() {
        const WAITING: usize = 2 * MAX_DECODING;
        let bodies = Bodies::new(4 * MOST, MOST, TURN_TIMEOUT);
        let client = |principal| Client {
            principal,
            connection: 0,
        };
        // Others have nearly all that is shared, each what it may have.
        let full: Vec<_> = (1..=3)
            .map(|principal| {
                let mut kept = bodies.kept(client(principal));
                let most = (1..=3 * MOST / 4096).take_while(|pages| kept.cover(pages * 4096));
                assert!(most.count() > 0);
                kept
            })
            .collect();
        let shared = CodedBodies::new(bodies.clone(), MOST);
        let coded = Bytes::from(gzip(&vec![7; MOST]).await);
        let (release, released) = tokio::sync::watch::channel(false);
        let requests: Vec<_> = (0..WAITING)
            .map(|_| {
                let (shared, coded, bodies) = (shared.clone(), coded.clone(), bodies.clone());
                let mut released = released.clone();
                tokio::spawn(async move {
                    let holds = Holds::of(&Request::new(Body::empty()), &bodies);
                    let decoded = shared.decode(Coding::Gzip, coded, &holds, client(4)).await;
                    // It is answered later.
                    released.wait_for(|released| *released).await.unwrap();
                    decoded.map(|decoded| decoded.unwrap().len())
                })
            })
            .collect();
        // One has the reserve.
        while bodies.waiting() < WAITING - 1 || shared.places.free() < MAX_DECODING {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        release.send_replace(true);
        drop(full);
        for request in requests {
            assert_eq!(request.await.unwrap(), Ok(MOST));
        }
        assert_eq!(bodies.held(), 0);
    }
}
