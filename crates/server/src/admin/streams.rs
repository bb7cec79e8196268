//! `/streams/{stream}`: the position of a stream, and what goes on in it.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use esker_node::{Error, Fork, Position};
use s2_common::basin::BasinName;
use s2_common::stream::StreamName;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::error::Failures;
use super::request::{InHeader, InPath, InQuery};
use super::{Admin, AdminError};
use crate::auth::Access;
use crate::client::OfClient;
use crate::timestamp::timestamp;

/// Records of this time count as new.
const LAST_MINUTE: Duration = Duration::from_secs(60);

/// The position of a stream, as of one moment.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct StreamPosition {
    /// The first sequence number that readers may see; the tail if there is none.
    pub head: u64,
    /// The next sequence number.
    pub tail: u64,
    /// The last record's timestamp, milliseconds since the epoch; 0 if there never was one.
    pub tail_timestamp: u64,
    /// When the stream was created. One that was deleted and created again was created later.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The history that the stream's partition is of.
    pub lineage: String,
    /// Where earlier histories were cut off, oldest first. What is of another history than these and
    /// `lineage` cannot be shown to be a part of this one.
    pub forks: Vec<StreamFork>,
    /// Sequence numbers that were passed over though nothing was cut off, oldest first: an import replaced
    /// the state whose commits the stream has.
    #[serde(default)]
    pub gaps: Vec<StreamGap>,
}

/// Where a history was cut off for a stream, and how it continued.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct StreamFork {
    /// The history that was cut off; null for one or several that are not remembered.
    #[serde(default)]
    pub parent: Option<String>,
    /// What the parent had below this is in the stream, or was trimmed since; what it had from here on is
    /// lost.
    pub seq_num: u64,
    /// Sequence numbers continue here.
    pub resumes_at: u64,
    /// Where the parent's own sequence numbers continued, if nothing that it appended is left. What it had
    /// below exactly this number is what is below `seq_num`. Absent for the first of the forks that have the
    /// same two numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_resumed_at: Option<u64>,
}

/// Sequence numbers that no record has, and that no history was cut off for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
pub struct StreamGap {
    /// The first of them.
    pub seq_num: u64,
    /// Sequence numbers continue here.
    pub resumes_at: u64,
}

impl From<Fork> for StreamFork {
    fn from(fork: Fork) -> StreamFork {
        StreamFork {
            parent: fork.parent.map(|parent| parent.to_string()),
            seq_num: fork.seq_num,
            resumes_at: fork.resumes_at,
            parent_resumed_at: fork.parent_resumed_at,
        }
    }
}

/// The position of a stream, and the forks of its partition that concern it.
///
/// A client can decide with it whether a state that was built from the stream's records is still of
/// its history. Creates no stream, even if reads do in this basin.
#[utoipa::path(
    get,
    path = "/esker/v1/streams/{stream}/position",
    operation_id = "stream_position",
    tag = "streams",
    params(
        ("stream" = String, Path, description = "The stream, percent-encoded"),
        ("s2-basin" = String, Header, description = "The basin")
    ),
    responses((status = 200, description = "As of now", body = StreamPosition), Failures)
)]
pub(super) async fn position(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InHeader(basin): InHeader<BasinName>,
    InPath(stream): InPath<StreamName>,
) -> Result<Json<StreamPosition>, AdminError> {
    let stream = access.position(&basin, stream)?;
    let own = |error| with_own_name(error, &access);
    let Position {
        head,
        tail,
        created_ms,
        lineage,
        forks,
        passed_over,
    } = {
        let (node, name) = (admin.node.open(&stream.granted), stream.name);
        let position = node.look_up(client, move |node| node.position(&basin, &name));
        position.await.map_err(own)?
    };
    Ok(Json(StreamPosition {
        head,
        tail: tail.seq_num,
        tail_timestamp: tail.timestamp,
        created_at: created_at(created_ms)?,
        lineage,
        forks: forks.into_iter().map(StreamFork::from).collect(),
        gaps: passed_over
            .into_iter()
            .map(|(seq_num, resumes_at)| StreamGap {
                seq_num,
                resumes_at,
            })
            .collect(),
    }))
}

/// An error with the name of the stream that the sender uses.
fn with_own_name(error: Error, access: &Access) -> AdminError {
    match access.auto_prefix() {
        Some(prefix) => error.without_prefix(prefix).into(),
        None => error.into(),
    }
}

/// What a stream has, and how much of it is new.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct StreamActivity {
    /// Records that readers may see. Unlike `tail` - `head`, without the numbers that a restore passed over.
    pub records: u64,
    /// Those of them whose timestamp is of the last minute, by the clock of the server. Timestamps may be the
    /// clients'.
    pub records_last_minute: u64,
    /// The cipher of the records; absent if they are not encrypted. To read them takes the key of the stream.
    #[serde(default)]
    pub cipher: Option<String>,
    /// Bytes of the records, as the S2 API meters them; absent if they were not read lately. Of more than 64 KiB
    /// it is an estimate.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// When that was found, to the minute.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(required = false)]
    pub bytes_at: Option<OffsetDateTime>,
}

/// What is to be found out.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichActivity {
    /// Whether to read the present size, which reads some of the records.
    #[serde(default)]
    size: bool,
}

/// How many records and bytes a stream has, and how many records are of the last minute.
///
/// Creates no stream, even if reads do in this basin.
#[utoipa::path(
    get,
    path = "/esker/v1/streams/{stream}/activity",
    operation_id = "stream_activity",
    tag = "streams",
    params(
        ("stream" = String, Path, description = "The stream, percent-encoded"),
        ("s2-basin" = String, Header, description = "The basin"),
        WhichActivity
    ),
    responses((status = 200, description = "As of now", body = StreamActivity), Failures)
)]
pub(super) async fn activity(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InHeader(basin): InHeader<BasinName>,
    InPath(stream): InPath<StreamName>,
    InQuery(which): InQuery<WhichActivity>,
) -> Result<Json<StreamActivity>, AdminError> {
    let arrived = Instant::now();
    let stream = access.position(&basin, stream)?;
    let (node, name) = (admin.node.open(&stream.granted), stream.name);
    let usage = admin.usage.clone();
    let found = node.look_up(client, move |node| {
        let since = OffsetDateTime::now_utc() - LAST_MINUTE;
        let since = u64::try_from(since.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        let counts = node.record_counts(&basin, &name, since)?;
        let size = match which.size {
            true => usage.present_size(node, &basin, &name, arrived)?,
            false => usage.last_size(&basin, &name),
        };
        Ok((counts, size))
    });
    let (counts, size) = found.await.map_err(|error| with_own_name(error, &access))?;
    let at = |(seconds, _): (u32, u64)| OffsetDateTime::from_unix_timestamp(seconds.into()).ok();
    Ok(Json(StreamActivity {
        records: counts.all,
        records_last_minute: counts.since,
        cipher: counts.cipher.map(|it| it.to_string()),
        bytes: size.map(|(_, bytes)| bytes),
        bytes_at: size.and_then(at),
    }))
}

/// The creation time, as the S2 API returns it.
fn created_at(ms: u64) -> Result<OffsetDateTime, AdminError> {
    timestamp(ms).map_err(AdminError::invalid)
}
