//! Errors of the admin API: `{"code": …, "message": …}`, as everywhere.

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use esker_node::{Error, RepositoryError, StateError, TokenError};
use http::{HeaderName, HeaderValue, StatusCode, header};
use s2_api::v1::error::ErrorCode;
use s2_common::http::extract::HeaderRejection;
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use crate::auth::{self, AccessError};

/// Codes that this API adds to those of the S2 API and of the repository: the code, its status, when,
/// and what to do.
pub const CODES: &[(&str, u16, &str, &str)] = &[
    (
        "partition_not_found",
        404,
        "There is no partition of this number.",
        "They are 0 (the catalog) to the number that the message names.",
    ),
    (
        "busy",
        409,
        "A snapshot of the partition is being proven, or its repository verified or pruned: one at a time, and this request has waited for 10 s.",
        "Try again when that has ended.",
    ),
    (
        "unavailable",
        503,
        "It failed; the message names the cause. Nothing was changed. Of every API: it is not known now whether the access token is valid, because the catalog has halted.",
        "Correct what the message names, and try again.",
    ),
    (
        "not_in_cluster",
        409,
        "The node is not in a cluster.",
        "Ask a node that is in one; or set `cluster.peer-listen`, and the node begins one.",
    ),
    (
        "node_not_found",
        404,
        "The cluster has no node of this number or name. A removed node counts as none, except where it is to be removed.",
        "`esker cluster status` shows those that there are.",
    ),
    (
        "cluster_refused",
        409,
        "The change of the cluster is not possible: a partition would lose its majority, say.",
        "Do what the message says.",
    ),
    (
        "cluster_unavailable",
        503,
        "The cluster cannot make the change now, or it is not known whether it did: a partition has no leader, or the leader has not answered.",
        "`esker cluster status` shows whether it was made. Else try again.",
    ),
    (
        "history_begins",
        404,
        "The commit, or the version of a key, is below the history of the state store that is kept.",
        "Ask for the first commit that the message names, or a later one.",
    ),
    (
        "earlier_lineage",
        409,
        "The snapshot is of a stale lineage: the partition's log does not continue where it ends.",
        "Prove one of the present lineage. `esker snapshot verify --data` checks the bytes of the others.",
    ),
    (
        "proof_failed",
        500,
        "A snapshot does not restore, or differs from the live partition.",
        "Do not rely on it: create another, and prove that. The message says how it differs.",
    ),
];

/// Codes of [`RepositoryError`], and their status.
pub const REPOSITORY_CODES: &[(&str, u16)] = &[
    ("no_repository", 404),
    ("no_snapshot", 404),
    ("unusable", 404),
    ("root_moved", 409),
    ("root_missing", 409),
    ("other_cluster", 409),
    ("other_lineage", 409),
    ("superseded", 409),
    ("not_ours", 409),
    ("repository_missing", 409),
    ("other_writer", 409),
    ("newer_format", 409),
    ("damaged", 500),
    ("io", 500),
    ("denied", 502),
    ("store", 502),
    ("fenced", 503),
    ("contended", 503),
    ("no_space", 507),
];

/// Codes of problems in a status: whether it is advice, which can wait, and what is wrong.
pub const PROBLEMS: &[(&str, bool, &str)] = &[
    (
        "repository_on_this_disk",
        true,
        "Snapshots are kept on the disk that they should survive.",
    ),
    (
        "one_snapshot_retained",
        true,
        "Only the newest snapshot is retained: there is none to fall back to.",
    ),
    (
        "unproven",
        true,
        "No snapshot was restored and compared for a month.",
    ),
    (
        "abandoned_snapshots",
        true,
        "Snapshots of stale lineages wait to be pruned by hand.",
    ),
    (
        "repository_failing",
        false,
        "The repository could not be read or written, at the last attempt.",
    ),
    (
        "repository_missing",
        false,
        "The destination is not the one that it was: its `cluster.json` is missing, or another one.",
    ),
    (
        "repository_other_writer",
        false,
        "Another copy of this node's data directory puts the snapshots.",
    ),
    (
        "repository_other_lineage",
        false,
        "The cluster was restored elsewhere: the repository has another lineage now.",
    ),
    (
        "repository_root_missing",
        false,
        "A `latest.json` was removed beside snapshots.",
    ),
    (
        "repository_of_others",
        false,
        "The destination belongs to another cluster or program.",
    ),
    (
        "snapshots_late",
        false,
        "The newest snapshot is three intervals old, and something came after it.",
    ),
    (
        "sweep_failing",
        false,
        "Orphans could not be swept: storage grows.",
    ),
    (
        "snapshot_damaged",
        true,
        "An object of a retained snapshot is damaged or missing, and there is no copy to repair it from. Newer snapshots do not use it.",
    ),
    (
        "scrub_failing",
        false,
        "Objects of retained snapshots could not be read and compared.",
    ),
    (
        "proof_failed",
        false,
        "A snapshot did not restore, or differed from the live partition.",
    ),
    (
        "tls_certificate_expires_soon",
        true,
        "The TLS certificate expires within 14 days.",
    ),
    (
        "tls_certificate_expired",
        false,
        "The TLS certificate has expired, or is not valid yet: clients refuse it.",
    ),
    (
        "tls_not_reloaded",
        false,
        "Files of TLS have changed and cannot be used: new connections use what was read before.",
    ),
    (
        "peer_certificate_not_reloaded",
        false,
        "The files of `cluster.certificate` have changed and cannot be used: new connections between nodes use what was read before.",
    ),
    (
        "peer_certificate_expires_soon",
        true,
        "The certificate of this node for other nodes (`cluster.certificate`) expires within 14 days.",
    ),
    (
        "peer_certificate_expired",
        false,
        "The certificate of this node for other nodes (`cluster.certificate`) has expired, or is not valid yet: they refuse new connections.",
    ),
    (
        "cluster_secret_not_reloaded",
        false,
        "The file of `cluster.secret-file` has changed and cannot be used: the secrets that were read before stay.",
    ),
    (
        "root_token_not_reloaded",
        false,
        "The file of the root token cannot be used: the token that was read before stays.",
    ),
    (
        "log_full",
        false,
        "The log exceeds `snapshots.max-log-bytes`.",
    ),
    (
        "log_trimmed",
        false,
        "The log no longer reaches back to the oldest retained snapshot.",
    ),
    (
        "clock_jumped",
        false,
        "The machine's clock has jumped ahead, less than a day ago: ages after which something is deleted do not follow it.",
    ),
    (
        "clock_differs",
        false,
        "The clock of this node differs by more than a minute from the time that a majority of the nodes have. Nothing is deleted for its age by the later of the two.",
    ),
    (
        "clocks_unknown",
        false,
        "The clocks of a majority of the nodes are not known to this node: in the partitions that it leads, nothing is deleted for its age.",
    ),
    (
        "snapshot_from_future",
        true,
        "The newest snapshot is from the future: a clock was ahead, or is behind.",
    ),
    (
        "basin_unknown",
        false,
        "Streams are there whose basin the catalog does not know: it was restored as of an earlier time.",
    ),
    (
        "access_tokens_suspended",
        false,
        "Access tokens are not valid: the catalog was restored with a loss, and their revocations may be lost. The root token confirms them.",
    ),
    (
        "access_tokens_unchecked",
        false,
        "Issued access tokens are refused on this node, but for what `admin.read` permits: it has no contact with the leader of the catalog, and may lack revocations. The root token is accepted.",
    ),
    (
        "state_snapshot_ignored",
        false,
        "A file in `snapshots/` is not a valid JSON snapshot of this state store; it is neither counted nor removed.",
    ),
    (
        "local_snapshot_failed",
        false,
        "A checkpoint on this disk failed.",
    ),
    (
        "database_damaged",
        false,
        "Files of a partition's database are damaged. The server makes a copy ready, and restarts itself to recover the partition.",
    ),
    (
        "restart_held_back",
        false,
        "The server needs a restart and does not restart itself: it did so too often, or no copy is complete.",
    ),
    (
        "restarted",
        true,
        "The server has restarted itself in the last hour, and why.",
    ),
    (
        "disk_takes_no_writes",
        false,
        "The disk takes no writes: appends are refused.",
    ),
    (
        "database_not_written",
        false,
        "What is in memory could not be written to the database's files. It is tried again, and appends are taken until memory is full; the log has everything.",
    ),
    (
        "partition_halted",
        false,
        "A partition applies nothing: its log could not be read, or is damaged. If the cause may be temporary, the server opens the partition again; the problem states it.",
    ),
    (
        "replica_diverged",
        false,
        "The state of this node's replica of a partition is not that of the majority: it is stopped for good, and the node has to be replaced.",
    ),
    (
        "replicas_differ",
        false,
        "Replicas of a partition differ, and it is not known which is wrong: none has a majority, or the majority are copies of one. No node gets a snapshot of one of them, and none is put into the repository.",
    ),
    (
        "replica_waits_for_space",
        false,
        "A replica fetches its state from another node, and the disk here is full: it goes on once there is space.",
    ),
    (
        "members_wait",
        false,
        "The members of a partition that this node leads have not been those that they should be for half a minute: a node does not catch up, or a change has no majority.",
    ),
    (
        "not_registered",
        false,
        "The catalog does not have this node as it is, for 20 seconds or longer: another node has its address there, or the catalog has no leader. It puts no snapshots meanwhile.",
    ),
    (
        "refused_by_cluster",
        false,
        "The other nodes do not take this one: it was removed, its data directory is a copy or an older state of that of a node that was started since, or another process runs with a copy of it.",
    ),
];

/// What is answered when something fails.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ErrorBody {
    /// Stable, for programs.
    pub code: String,
    /// What happened, to what, and what to do.
    pub message: String,
}

/// Why a request failed.
#[derive(Debug)]
pub struct AdminError {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl AdminError {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl ToString,
    ) -> AdminError {
        AdminError {
            status,
            code,
            message: message.to_string(),
            header: None,
        }
    }

    /// A request that is well-formed but not valid.
    pub(super) fn invalid(message: impl ToString) -> AdminError {
        AdminError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }

    pub(super) fn busy(partition: u64) -> AdminError {
        AdminError::listed(
            "busy",
            format!(
                "a snapshot of partition {partition} is being proven, or its repository verified or \
                 pruned: one at a time"
            ),
        )
    }

    /// The error of a proof: the partition and the snapshot differ, or they could not be compared.
    pub(super) fn of_proof(error: Error) -> AdminError {
        match error {
            Error::Storage(why) => AdminError::listed("proof_failed", why),
            other => other.into(),
        }
    }

    /// An error with a code of the S2 API, which has the same meaning there.
    fn s2(code: ErrorCode, message: impl ToString) -> AdminError {
        AdminError::new(code.status(), code.into(), message)
    }

    /// An error with a code of [`CODES`] or [`REPOSITORY_CODES`].
    pub(super) fn listed(code: &'static str, message: impl ToString) -> AdminError {
        let ours = CODES.iter().map(|(code, status, ..)| (*code, *status));
        let mut all = ours.chain(REPOSITORY_CODES.iter().copied());
        let status = all.find(|(known, _)| *known == code);
        let status = status.and_then(|(_, status)| StatusCode::from_u16(status).ok());
        AdminError::new(
            status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code,
            message,
        )
    }
}

impl From<Error> for AdminError {
    fn from(error: Error) -> AdminError {
        match &error {
            Error::BasinNotFound(_) => AdminError::s2(ErrorCode::BasinNotFound, error),
            Error::BasinDeletionPending(_) => {
                AdminError::s2(ErrorCode::BasinDeletionPending, error)
            }
            Error::BasinExists(_) => AdminError::s2(ErrorCode::ResourceAlreadyExists, error),
            Error::StreamNotFound { .. } => AdminError::s2(ErrorCode::StreamNotFound, error),
            Error::PartitionNotFound { .. } => AdminError::listed("partition_not_found", error),
            Error::Repository(of) => AdminError::listed(repository_code(of), error),
            Error::TryLater(_) => {
                let mut refused = AdminError::listed("unavailable", error);
                refused.header = Some((header::RETRY_AFTER, HeaderValue::from_static("1")));
                refused
            }
            Error::Stopping | Error::NotLeader(_) => {
                AdminError::new(StatusCode::SERVICE_UNAVAILABLE, "server_draining", error)
            }
            Error::EarlierLineage { .. } => AdminError::listed("earlier_lineage", error),
            Error::Invalid(_) => AdminError::invalid(error),
            Error::Storage(_) => {
                AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", error)
            }
            _ => AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "other", error),
        }
    }
}

/// The code that `esker snapshot` prints for the same error when it accesses a repository directly.
fn repository_code(error: &RepositoryError) -> &'static str {
    match error {
        RepositoryError::NoRoot { others: false, .. } | RepositoryError::NoBucket { .. } => {
            "no_repository"
        }
        RepositoryError::NoRoot { .. } => "root_missing",
        RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } => "damaged",
        RepositoryError::NewerFormat { .. } => "newer_format",
        RepositoryError::OtherCluster { .. } => "other_cluster",
        RepositoryError::NotOurs { .. } => "not_ours",
        RepositoryError::MarkerMissing { .. } | RepositoryError::OtherDestination { .. } => {
            "repository_missing"
        }
        RepositoryError::OtherWriter { .. } => "other_writer",
        RepositoryError::OtherLineage { .. } => "other_lineage",
        RepositoryError::Superseded { .. } => "superseded",
        RepositoryError::Fenced { .. } => "fenced",
        RepositoryError::RootMoved { .. } => "root_moved",
        RepositoryError::Contended { .. } => "contended",
        RepositoryError::NoSnapshot(_) => "no_snapshot",
        RepositoryError::Unusable(_) => "unusable",
        RepositoryError::Denied { .. } => "denied",
        RepositoryError::NoSpace { .. } => "no_space",
        RepositoryError::Io { .. } => "io",
        RepositoryError::Store { .. } | RepositoryError::Invalid(_) => "store",
        // Variants that were added later have no code of their own yet.
        _ => "store",
    }
}

impl From<StateError> for AdminError {
    fn from(error: StateError) -> AdminError {
        match &error {
            StateError::Invalid(_) => AdminError::invalid(error),
            StateError::HistoryBegins { .. } => AdminError::listed("history_begins", error),
            StateError::Stopping => {
                AdminError::new(StatusCode::SERVICE_UNAVAILABLE, "server_draining", error)
            }
            StateError::Exhausted(_) | StateError::Unavailable(_) => {
                AdminError::listed("unavailable", error)
            }
            StateError::Storage(_) => {
                AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "storage", error)
            }
            _ => AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, "other", error),
        }
    }
}

impl From<AccessError> for AdminError {
    fn from(error: AccessError) -> AdminError {
        auth::error::count_refusal(&error);
        let code = error.code();
        let mut refused = AdminError::new(code.status(), code.into(), &error);
        refused.header = error.header();
        refused
    }
}

impl From<TokenError> for AdminError {
    fn from(error: TokenError) -> AdminError {
        match error {
            TokenError::Failed(error) => error.into(),
            other => AdminError::listed("unavailable", other),
        }
    }
}

impl From<PathRejection> for AdminError {
    fn from(rejection: PathRejection) -> AdminError {
        AdminError::new(StatusCode::BAD_REQUEST, "bad_path", rejection.body_text())
    }
}

impl From<HeaderRejection> for AdminError {
    fn from(rejection: HeaderRejection) -> AdminError {
        AdminError::s2(ErrorCode::BadHeader, rejection)
    }
}

impl From<QueryRejection> for AdminError {
    fn from(rejection: QueryRejection) -> AdminError {
        AdminError::new(StatusCode::BAD_REQUEST, "bad_query", rejection.body_text())
    }
}

impl From<BytesRejection> for AdminError {
    fn from(rejection: BytesRejection) -> AdminError {
        AdminError::new(rejection.status(), "bad_json", rejection.body_text())
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(code = self.code, message = %self.message, "request failed");
        }
        let body = ErrorBody {
            code: self.code.to_owned(),
            message: self.message,
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// How an operation on a partition fails, for the document.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub(super) enum Failures {
    /// The path, a header, a query parameter or the body is malformed.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// There is no valid access token.
    #[response(status = 401)]
    Unauthenticated(ErrorBody),
    /// The access token does not permit it.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// Too many requests without a valid access token came from the address.
    #[response(status = 429)]
    Limited(ErrorBody),
    /// There is no such partition, basin, stream, snapshot or repository.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// Something else is under way (a basin's deletion, say) or came first, or the repository is somebody else's.
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// It cannot be meant.
    #[response(status = 422)]
    Invalid(ErrorBody),
    /// Something is damaged.
    #[response(status = 500)]
    Damaged(ErrorBody),
    /// The repository's store refuses, or does not answer.
    #[response(status = 502)]
    Store(ErrorBody),
    /// It came to nothing, or the server is stopping.
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// There is not enough space.
    #[response(status = 507)]
    NoSpace(ErrorBody),
}
