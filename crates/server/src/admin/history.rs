//! `GET /history`: what the node did in the last hour.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::error::Failures;
use super::{Admin, AdminError};
use crate::auth::Access;
use crate::auth::operation::Effect;
use crate::sample_history;

/// What the node did lately.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Samples {
    /// The oldest first; of an hour at most, and since the start of the node.
    pub samples: Vec<HistorySample>,
}

/// What the node did in about ten seconds.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct HistorySample {
    /// The end of the interval.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// How long it was.
    pub seconds: f64,
    /// Records that were appended and are durable.
    pub records: u64,
    /// Batches of them.
    pub batches: u64,
    /// Commits of the state store.
    pub commits: u64,
    /// Half of the appends and commits took at most this, in seconds; absent if there were none.
    pub p50_seconds: Option<f64>,
    /// The same of 99 in 100.
    pub p99_seconds: Option<f64>,
    /// Bytes that snapshots have uploaded.
    pub bytes_uploaded: u64,
    /// Bytes of the log on disk, at the end.
    pub log_bytes: u64,
    /// Entries of the log that no checkpoint covers, at the end: what a restart replays.
    pub entries_above_floor: u64,
}

/// What the node did in the last hour, in samples of ten seconds. A restart begins it anew.
#[utoipa::path(
    get,
    path = "/esker/v1/history",
    operation_id = "history",
    tag = "status",
    responses((status = 200, description = "Empty right after a start", body = Samples), Failures)
)]
pub(super) async fn history(
    State(admin): State<Admin>,
    access: Access,
) -> Result<Json<Samples>, AdminError> {
    access.admin(Effect::Read)?;
    let samples = admin.history.samples();
    Ok(Json(Samples {
        samples: samples.into_iter().map(HistorySample::from).collect(),
    }))
}

impl From<sample_history::Sample> for HistorySample {
    fn from(sample: sample_history::Sample) -> HistorySample {
        HistorySample {
            at: sample.at,
            seconds: sample.seconds,
            records: sample.records,
            batches: sample.batches,
            commits: sample.commits,
            p50_seconds: sample.p50.map(|it| it.as_secs_f64()),
            p99_seconds: sample.p99.map(|it| it.as_secs_f64()),
            bytes_uploaded: sample.bytes_uploaded,
            log_bytes: sample.log_bytes,
            entries_above_floor: sample.entries_above_floor,
        }
    }
}
