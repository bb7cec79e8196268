//! `GET /esker/v1/streams/{stream}/position`: what only Esker says of a stream. Other servers answer 404,
//! and are followed without.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::{EndpointError, Fork, Gap};

/// Longest wait for it. Without an answer nothing is decided: a snapshot of a dead lineage must not be
/// taken for a good one because a server was slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const ANSWER: usize = 64 * 1024;

/// What Esker says.
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

/// Asks a server; `None` if it is another one than Esker.
pub async fn ask(
    http: &reqwest::Client,
    server: &Url,
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
    let request = http.get(url.clone()).header("s2-basin", basin);
    let mut answer = request
        .timeout(PATIENCE)
        .send()
        .await
        .map_err(unavailable)?;
    let status = answer.status();
    if status.is_server_error() {
        return Err(EndpointError::Unavailable(format!("{url}: {status}")));
    }
    if !status.is_success() {
        return Ok(None);
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unavailable)? {
        if body.len() + chunk.len() > ANSWER {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body).ok())
}
