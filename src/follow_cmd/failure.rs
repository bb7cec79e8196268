//! Translates the library's errors for a person: a stable code, what happened, and what to do.

use esker_follow::Error;
use esker_follow::endpoint::EndpointError;

use super::snapshot_args::Objects;
use crate::failure::Failure;
use crate::server_address::ServerAddress;
use crate::term::plain;

/// A library's error, as a failure of the command. It may contain names from a stream.
pub fn of(error: &Error, server: &ServerAddress, objects: Option<&Objects>) -> Failure {
    let text = plain(&error.to_string());
    let with = |hint: &str| format!("{text}; {hint}");
    match error {
        Error::HistoryGone { .. } => Failure::wrong(
            "history_gone",
            with(
                "name the place of its snapshots with --snapshot; --inspect lists those that there \
                 are",
            ),
        ),
        Error::Unusable { .. } => {
            Failure::wrong("snapshot_unusable", with("choose so with --pass-over"))
        }
        Error::OtherFold { .. } => Failure::wrong(
            "other_fold",
            with(
                "follow with that fold, or keep the snapshots of one of the two beside the stream, \
                 with --snapshot external:URL and all records there",
            ),
        ),
        Error::Malformed { .. } => {
            Failure::wrong("record_malformed", with("choose so with --skip-malformed"))
        }
        Error::FoldFailed { .. } => Failure::wrong("fold_failed", text),
        Error::Endpoint {
            why: EndpointError::Unavailable(_),
            ..
        } => Failure::unreachable(
            "unreachable",
            with(&format!("{} stopped answering", server)),
        ),
        Error::Endpoint {
            why: EndpointError::Denied(_),
            ..
        } => Failure::wrong(
            "identity_unknown",
            with(
                "without it, nobody knows whether this is the stream that its snapshots are of; \
                 allow it, or choose so with --trust-name",
            ),
        ),
        Error::Endpoint { .. } => Failure::wrong("refused", text),
        Error::Store { .. } => {
            let hint = objects.map_or_else(String::new, Objects::where_to_look);
            Failure::unreachable("store_unreachable", with(&hint))
        }
        Error::NotTaken(_) => Failure::wrong("snapshot_failed", text),
        Error::Invalid(_) => Failure::usage("invalid", text),
        _ => Failure::wrong("client", text),
    }
}
