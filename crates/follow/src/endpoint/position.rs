//! `GET /esker/v1/streams/{stream}/position`: what only Esker reports about a stream. Other servers
//! answer 404, and are followed without it. Only 404 means that there is no such operation: a server that
//! refuses, or whose answer is malformed, may be an Esker whose lineages would go unnoticed.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::{EndpointError, Fork, Gap};

/// Longest wait for an answer. Without one nothing is decided: that a server was slow must not make a
/// snapshot of a stale lineage count as a good one.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const ANSWER: usize = 64 * 1024;

/// The answer of Esker.
#[derive(Clone, Debug, Deserialize)]
pub struct Position {
    /// First sequence number that readers may see.
    pub head: u64,
    /// The next sequence number.
    pub tail: u64,
    /// The lineage of its history.
    pub lineage: String,
    /// Where earlier ones were left, oldest first.
    #[serde(default)]
    pub forks: Vec<Fork>,
    /// Numbers that were passed over; earlier versions of Esker count them as forks.
    #[serde(default)]
    pub gaps: Vec<Gap>,
}

/// Asks a server for the position; `None` if it is no Esker.
///
/// # Errors
///
/// [`EndpointError::Unavailable`]; [`EndpointError::Denied`] if the server does not permit this client to
/// see it; [`EndpointError::Refused`].
pub async fn ask(
    http: &reqwest::Client,
    server: &Url,
    token: Option<&str>,
    basin: &str,
    stream: &str,
) -> Result<Option<Position>, EndpointError> {
    let mut url = server.clone();
    {
        let mut path = url
            .path_segments_mut()
            .map_err(|()| EndpointError::Refused(format!("{server} cannot have a path")))?;
        path.clear()
            .extend(["esker", "v1", "streams", stream, "position"]);
    }
    let unavailable = |e: reqwest::Error| EndpointError::Unavailable(format!("{url}: {e}"));
    let mut request = http.get(url.clone()).header("s2-basin", basin);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let mut answer = request
        .timeout(WAIT_TIMEOUT)
        .send()
        .await
        .map_err(unavailable)?;
    let status = answer.status();
    match status.as_u16() {
        200..=299 => {}
        404 | 405 | 501 => return Ok(None),
        401 | 403 => return Err(EndpointError::Denied(format!("{url}: {status}"))),
        429 | 500.. => return Err(EndpointError::Unavailable(format!("{url}: {status}"))),
        _ => return Err(EndpointError::Refused(format!("{url}: {status}"))),
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unavailable)? {
        if body.len() + chunk.len() > ANSWER {
            return Err(EndpointError::Refused(format!(
                "{url}: the answer has more than {ANSWER} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    let position = serde_json::from_slice(&body);
    let position = position.map_err(|e| EndpointError::Refused(format!("{url}: {e}")));
    position.map(Some)
}
