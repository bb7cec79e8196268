//! Errors as gRPC has them: a code of gRPC, a message, and details for programs.
//!
//! The details are a `google.rpc.ErrorInfo` whose reason is one of [`CODES`], the `StatehouseError` that
//! the protocol of Statehouse declares, and further details of this error. The reason is in the metadata,
//! too (`esker-code`), for clients that decode no details.

use std::collections::HashMap;

use esker_node::StateError;
use esker_proto::Any;
use esker_proto::state::v1::{HistoryBegins, VersionMismatch};
use esker_proto::statehouse::v1::{ErrorCode, StatehouseError};
use esker_proto::value::ValueError;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, pb};

use super::MAX_REQUEST;
use crate::answers::{Exhausted, MAX_ANSWER};
use crate::auth::AccessError;

/// The domain of the reasons.
pub const DOMAIN: &str = "esker.state.v1";

/// The metadata that has the reason.
pub const CODE_METADATA: &str = "esker-code";

/// Longest message, bytes. A client takes some 8 KiB of trailers, and names may have 4 KiB each.
const MAX_MESSAGE: usize = 1024;
/// Most bytes of details; if there are more, only the reason is sent.
const MAX_DETAILS: usize = 3 * 1024;

/// Codes of the state service: the code, the gRPC code, when, and what to do. Other APIs have the codes
/// of [`SHARED_CODES`] too, and list them.
pub const CODES: &[(&str, &str, &str, &str)] = &[
    (
        "transaction_not_found",
        "NOT_FOUND",
        "The transaction is not known: it was committed, aborted, or never begun.",
        "Begin again. If a commit's answer was lost, look whether it happened: its id is in the replay.",
    ),
    (
        "transaction_expired",
        "DEADLINE_EXCEEDED",
        "The transaction was open for longer than its timeout. Nothing of it happened.",
        "Begin again, with a longer timeout if need be.",
    ),
    (
        "transaction_lost",
        "ABORTED",
        "What was staged in the transaction is lost: the server that has begun it was restarted, or no longer leads the state store. A commit that was on its way at that time may have happened.",
        "If a commit was sent, read the keys; else begin again.",
    ),
    (
        "version_mismatch",
        "ABORTED",
        "A key has another version than expected; message and details name both. Nothing happened.",
        "Read the key, decide again, and begin again.",
    ),
    (
        "exhausted",
        "RESOURCE_EXHAUSTED",
        "A limit was reached: of open transactions, of a transaction, a commit, a request or an answer.",
        "The message names the limit. Commit or abort what is open; write less in one transaction; read by pages (`Scan`).",
    ),
    (
        "snapshot_not_found",
        "NOT_FOUND",
        "There is no JSON snapshot of that commit.",
        "`esker state snapshot --list` shows those that there are.",
    ),
    (
        "no_state_snapshot",
        "NOT_FOUND",
        "There is no JSON snapshot on the server's disk: there is nothing to verify.",
        "`esker state snapshot` makes one.",
    ),
    (
        "not_empty",
        "FAILED_PRECONDITION",
        "An import into a store that has had commits.",
        "To replace its state, import with `--replace`.",
    ),
    (
        "nothing_committed",
        "FAILED_PRECONDITION",
        "The store has had no commit: there is nothing to make a snapshot of.",
        "Commit something first.",
    ),
    (
        "value_unfit",
        "FAILED_PRECONDITION",
        "A stored value does not fit into a message: it came by an import, and nests too deep or has a number that no float can hold.",
        "Read it with `esker state export`, or write another one. In a list or a scan, the key comes without its value.",
    ),
];

/// Codes that other APIs have too, and their gRPC codes here.
pub const SHARED_CODES: &[(&str, &str)] = &[
    ("invalid", "INVALID_ARGUMENT"),
    ("unavailable", "UNAVAILABLE"),
    ("history_begins", "OUT_OF_RANGE"),
    ("server_draining", "UNAVAILABLE"),
    ("other", "UNKNOWN"),
    ("storage", "INTERNAL"),
    ("request_timeout", "DEADLINE_EXCEEDED"),
    ("authn", "UNAUTHENTICATED"),
    ("permission_denied", "PERMISSION_DENIED"),
    ("rate_limited", "RESOURCE_EXHAUSTED"),
];

/// The status of an error.
pub(crate) fn status(error: &StateError) -> Status {
    let (code, reason, statehouse) = match error {
        StateError::TransactionNotFound(_) => (
            Code::NotFound,
            "transaction_not_found",
            ErrorCode::TxnNotFound,
        ),
        StateError::TransactionExpired { .. } => (
            Code::DeadlineExceeded,
            "transaction_expired",
            ErrorCode::TxnExpired,
        ),
        StateError::TransactionLost(_) => {
            (Code::Aborted, "transaction_lost", ErrorCode::TxnNotFound)
        }
        StateError::NotPermitted => (
            Code::PermissionDenied,
            "permission_denied",
            ErrorCode::InvalidRequest,
        ),
        StateError::VersionMismatch { .. } => {
            (Code::Aborted, "version_mismatch", ErrorCode::Unknown)
        }
        StateError::Invalid(_) => (Code::InvalidArgument, "invalid", ErrorCode::InvalidRequest),
        StateError::Exhausted(_) => (
            Code::ResourceExhausted,
            "exhausted",
            ErrorCode::InvalidRequest,
        ),
        StateError::HistoryBegins { .. } => (
            Code::OutOfRange,
            "history_begins",
            ErrorCode::VersionNotFound,
        ),
        StateError::NoSnapshot => (
            Code::NotFound,
            "no_state_snapshot",
            ErrorCode::VersionNotFound,
        ),
        StateError::SnapshotNotFound(_) => (
            Code::NotFound,
            "snapshot_not_found",
            ErrorCode::VersionNotFound,
        ),
        StateError::NotEmpty { .. } => (
            Code::FailedPrecondition,
            "not_empty",
            ErrorCode::InvalidRequest,
        ),
        StateError::NothingCommitted => (
            Code::FailedPrecondition,
            "nothing_committed",
            ErrorCode::InvalidRequest,
        ),
        StateError::Unavailable(_) => (Code::Unavailable, "unavailable", ErrorCode::InternalError),
        StateError::Stopping => (
            Code::Unavailable,
            "server_draining",
            ErrorCode::InternalError,
        ),
        StateError::Unknown(_) => (Code::Unknown, "other", ErrorCode::Unknown),
        StateError::Storage(_) => (Code::Internal, "storage", ErrorCode::StorageError),
    };
    if matches!(code, Code::Internal | Code::Unknown) {
        tracing::warn!(code = reason, message = %error, "a call on the state store failed");
    }
    made(code, reason, statehouse, error.to_string(), details(error))
}

/// The status of a call whose sender may not make it.
pub(crate) fn no_access(error: &AccessError) -> Status {
    let code = match error {
        AccessError::Unauthenticated => Code::Unauthenticated,
        AccessError::Forbidden(_) | AccessError::Suspended | AccessError::Off => {
            Code::PermissionDenied
        }
        AccessError::Limited { .. } => Code::ResourceExhausted,
        AccessError::Unavailable(_) => Code::Unavailable,
        AccessError::Invalid(_) => Code::InvalidArgument,
    };
    let message = error.to_string();
    made(
        code,
        error.code().into(),
        ErrorCode::InvalidRequest,
        message,
        Details::default(),
    )
}

/// The status of a request that is not valid.
pub(super) fn invalid(problem: impl Into<String>) -> Status {
    status(&StateError::Invalid(problem.into()))
}

/// The status of what is too large.
fn exhausted(problem: impl Into<String>) -> Status {
    status(&StateError::Exhausted(problem.into()))
}

/// The status of an answer that would be too large.
pub(super) fn too_much() -> Status {
    exhausted(format!(
        "the answer would have more than {} MiB: choose a longer prefix, or read by pages, with Scan of \
         esker.state.v1.StateService or with `esker state keys`",
        MAX_ANSWER >> 20
    ))
}

/// The status of what is unavailable now, and may be available later.
pub(crate) fn unavailable(problem: impl Into<String>) -> Status {
    status(&StateError::Unavailable(problem.into()))
}

/// The status of what may have happened or not.
pub(crate) fn unknown(problem: impl Into<String>) -> Status {
    status(&StateError::Unknown(problem.into()))
}

/// The status of a request that comes too slowly.
pub(crate) fn too_slow(problem: impl Into<String>) -> Status {
    made(
        Code::DeadlineExceeded,
        "request_timeout",
        ErrorCode::InvalidRequest,
        problem.into(),
        Details::default(),
    )
}

/// The status of a request that is too large.
pub(crate) fn too_large() -> Status {
    exhausted(format!(
        "the request has more than {} MiB: write less at once",
        MAX_REQUEST >> 20
    ))
}

/// The status of an answer for which there is no memory now.
pub(crate) fn refused(error: Exhausted) -> Status {
    match error {
        // As at a stop, the client may retry at once.
        Exhausted::Stalled => made(
            Code::Unavailable,
            "server_draining",
            ErrorCode::InternalError,
            error.to_string(),
            Details::default(),
        ),
        // This passes by itself: clients retry what was unavailable, but not what exceeds a limit.
        Exhausted::Scans
        | Exhausted::Exports
        | Exhausted::Held
        | Exhausted::HeldByPrincipal
        | Exhausted::Reads => unavailable(error.to_string()),
    }
}

/// The status of a value from a client that is not valid JSON.
pub(super) fn bad_value(error: &ValueError) -> Status {
    invalid(format!("bad value: {error}"))
}

/// The status of a stored value that does not fit into a message.
pub(super) fn unfit(key: &str, error: &ValueError) -> Status {
    made(
        Code::FailedPrecondition,
        "value_unfit",
        ErrorCode::InternalError,
        format!("the value of key `{key}` does not fit into a message: {error}"),
        Details::default(),
    )
}

/// What an error has for programs, beside its reason.
#[derive(Default)]
struct Details {
    words: Vec<(&'static str, String)>,
    message: Option<Any>,
}

fn details(error: &StateError) -> Details {
    match error {
        StateError::TransactionNotFound(txn) | StateError::TransactionLost(txn) => Details {
            words: vec![("txn_id", txn.clone())],
            message: None,
        },
        StateError::TransactionExpired { txn, timeout_ms } => Details {
            words: vec![
                ("txn_id", txn.clone()),
                ("timeout_ms", timeout_ms.to_string()),
            ],
            message: None,
        },
        StateError::VersionMismatch {
            key,
            expected,
            actual,
        } => Details {
            words: vec![
                ("expected", expected.to_string()),
                ("actual", actual.to_string()),
            ],
            message: Some(any(
                "VersionMismatch",
                &VersionMismatch {
                    namespace: key.namespace.clone(),
                    agent_id: key.agent_id.clone(),
                    key: key.key.clone(),
                    expected: *expected,
                    actual: *actual,
                },
            )),
        },
        StateError::HistoryBegins { commit_ts, version } => Details {
            words: vec![("commit_ts", commit_ts.to_string())],
            message: Some(any(
                "HistoryBegins",
                &HistoryBegins {
                    commit_ts: *commit_ts,
                    version: *version,
                },
            )),
        },
        StateError::SnapshotNotFound(commit_ts) | StateError::NotEmpty { commit_ts } => Details {
            words: vec![("commit_ts", commit_ts.to_string())],
            message: None,
        },
        StateError::Invalid(_)
        | StateError::NothingCommitted
        | StateError::NoSnapshot
        | StateError::Exhausted(_)
        | StateError::Unavailable(_)
        | StateError::NotPermitted
        | StateError::Stopping
        | StateError::Unknown(_)
        | StateError::Storage(_) => Details::default(),
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{DOMAIN}.{name}"),
        value: message.encode_to_vec(),
    }
}

fn made(
    code: Code,
    reason: &'static str,
    statehouse: ErrorCode,
    message: String,
    details: Details,
) -> Status {
    let message = shortened(message);
    let words: HashMap<String, String> = details
        .words
        .into_iter()
        .map(|(name, value)| (name.to_owned(), shortened(value)))
        .collect();
    let info = ErrorInfo::new(reason, DOMAIN, words.clone());
    let info = Any {
        type_url: ErrorInfo::TYPE_URL.into(),
        value: pb::ErrorInfo::from(info).encode_to_vec(),
    };
    let declared = Any {
        type_url: "type.googleapis.com/statehouse.v1.StatehouseError".into(),
        value: StatehouseError {
            code: statehouse.into(),
            message: message.clone(),
            details: words,
        }
        .encode_to_vec(),
    };
    let mut all = vec![info, declared];
    all.extend(details.message);
    let mut sent = pb::Status {
        code: code as i32,
        message: message.clone(),
        details: all,
    };
    if sent.encoded_len() > MAX_DETAILS {
        sent.details.truncate(1);
    }
    let mut metadata = MetadataMap::new();
    metadata.insert(CODE_METADATA, MetadataValue::from_static(reason));
    Status::with_details_and_metadata(code, message, sent.encode_to_vec().into(), metadata)
}

/// Cuts a text at the end of a character.
fn shortened(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use esker_node::state::StateKey;
    use tonic_types::StatusExt as _;

    use super::*;

    fn key(length: usize) -> StateKey {
        StateKey {
            namespace: "n".repeat(length),
            agent_id: "a".repeat(length),
            key: "é".repeat(length),
        }
    }

    fn every_error() -> Vec<StateError> {
        vec![
            StateError::TransactionNotFound("t".into()),
            StateError::TransactionExpired {
                txn: "t".into(),
                timeout_ms: 5,
            },
            StateError::TransactionLost("t".into()),
            StateError::VersionMismatch {
                key: key(1),
                expected: 3,
                actual: 4,
            },
            StateError::Invalid("i".into()),
            StateError::Exhausted("e".into()),
            StateError::HistoryBegins {
                commit_ts: 7,
                version: Some(2),
            },
            StateError::SnapshotNotFound(9),
            StateError::NotEmpty { commit_ts: 9 },
            StateError::NothingCommitted,
            StateError::NoSnapshot,
            StateError::Unavailable("u".into()),
            StateError::Stopping,
            StateError::Unknown("u".into()),
            StateError::Storage("s".into()),
        ]
    }

    fn reason(status: &Status) -> String {
        let code = status.metadata().get(CODE_METADATA).expect("a code");
        code.to_str().expect("ASCII").to_owned()
    }

    fn detail<M: Message + Default>(status: &Status, name: &str) -> Option<M> {
        let sent = pb::Status::decode(status.details()).expect("details");
        let found = sent
            .details
            .into_iter()
            .find(|it| it.type_url.ends_with(name));
        found.map(|it| M::decode(it.value.as_slice()).expect("it is what it says"))
    }

    #[test]
    fn every_error_has_a_listed_code_with_the_code_of_grpc_that_is_listed() {
        let mut listed: HashMap<_, _> = SHARED_CODES.iter().copied().collect();
        listed.extend(CODES.iter().map(|(code, grpc, ..)| (*code, *grpc)));
        listed.remove("value_unfit");
        let slow = too_slow("s");
        assert_eq!(slow.code(), Code::DeadlineExceeded);
        assert!(listed.remove(reason(&slow).as_str()).is_some());
        let refusals = [
            AccessError::Unauthenticated,
            AccessError::Forbidden("reads".into()),
            AccessError::Limited { retry_after: 1 },
        ];
        let refusals = refusals.map(|refusal| (no_access(&refusal), refusal.to_string()));
        let errors = every_error();
        let errors = errors.iter().map(|it| (status(it), it.to_string()));
        for (status, message) in errors.chain(refusals) {
            let reason = reason(&status);
            let grpc = listed.remove(reason.as_str());
            let grpc = grpc.unwrap_or_else(|| panic!("{reason} is not listed, or given twice"));
            let camel: String = grpc
                .split('_')
                .map(|word| word[..1].to_owned() + &word[1..].to_lowercase())
                .collect();
            assert_eq!(format!("{:?}", status.code()), camel, "{reason}");
            assert_eq!(status.message(), message);
            let info = status.get_details_error_info().expect("a reason");
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (&*reason, DOMAIN)
            );
        }
        assert!(listed.is_empty(), "no error gives {listed:?}");
    }

    #[test]
    fn a_mismatch_names_both_versions_in_words_and_in_details() {
        let status = status(&every_error()[3]);
        assert!(status.message().contains("version 4, not 3"), "{status:?}");
        let detail: VersionMismatch = detail(&status, ".VersionMismatch").expect("a detail");
        assert_eq!((detail.expected, detail.actual), (3, 4));
        assert_eq!(detail.key, "é");
    }

    #[test]
    fn the_beginning_of_history_is_a_detail() {
        let detail: HistoryBegins =
            detail(&status(&every_error()[6]), ".HistoryBegins").expect("a detail");
        assert_eq!((detail.commit_ts, detail.version), (7, Some(2)));
    }

    #[test]
    fn a_client_of_statehouse_finds_the_error_that_its_protocol_declares() {
        let detail: StatehouseError =
            detail(&status(&every_error()[1]), ".StatehouseError").expect("a detail");
        assert_eq!(detail.code(), ErrorCode::TxnExpired);
        assert_eq!(detail.details["txn_id"], "t");
    }

    #[test]
    fn long_names_do_not_make_a_status_that_no_client_takes() {
        let status = status(&StateError::VersionMismatch {
            key: key(4096),
            expected: 1,
            actual: 2,
        });
        assert!(status.message().len() <= MAX_MESSAGE + 3);
        assert!(status.details().len() <= MAX_DETAILS);
        assert_eq!(reason(&status), "version_mismatch");
        let info = status.get_details_error_info().expect("a reason");
        assert_eq!(info.metadata["actual"], "2");
    }
}
