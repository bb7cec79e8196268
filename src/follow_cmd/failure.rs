//! Translates the library's errors for a person: a stable code, what happened, and what to do.

use esker_follow::endpoint::EndpointError;
use esker_follow::{Error, Unusable};

use super::snapshot_args::Objects;
use crate::failure::Failure;
use crate::server_address::ServerAddress;
use crate::term::plain;

/// A library's error, as a failure of the command. It may contain names from a stream.
pub fn of(error: &Error, server: &ServerAddress, objects: Option<&Objects>) -> Failure {
    let text = plain(&error.to_string());
    let with = |hint: &str| format!("{text}; {hint}");
    match error {
        Error::HistoryGone { .. } => {
            let hint = match objects {
                Some(objects) => format!(
                    "look whether {} is the place of its snapshots; --inspect lists those that there are, \
                     and why each is of no use",
                    objects.place()
                ),
                None => {
                    "if it has snapshots beside it, name their place with --snapshot external:URL; \
                         --inspect lists those that there are"
                        .to_owned()
                }
            };
            Failure::wrong("history_gone", with(&hint))
        }
        Error::Unusable { why, .. } => Failure::wrong("snapshot_unusable", with(unusable(why))),
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
        Error::FoldFailed { .. } => Failure::wrong(
            "fold_failed",
            with(
                "the state before that record is in the newest snapshot; a follower that starts again stops there again",
            ),
        ),
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
        Error::Endpoint { .. } => Failure::wrong(
            "refused",
            with(&format!(
                "{server} refuses this for good: look at the permissions of the access token, and \
                 whether the stream is still there"
            )),
        ),
        Error::Store { .. } => {
            let hint = objects.map_or_else(String::new, Objects::where_to_look);
            Failure::unreachable("store_unreachable", with(&hint))
        }
        Error::NotTaken(_) => Failure::wrong(
            "snapshot_failed",
            with("the state is not affected, and the next snapshot is due at once"),
        ),
        Error::Invalid(_) => Failure::usage("invalid", text),
        _ => Failure::wrong("client", text),
    }
}

/// What to do about a snapshot that must not be used.
fn unusable(why: &Unusable) -> &'static str {
    match why {
        Unusable::OtherFold { .. } => {
            "follow with that fold, or with a place of snapshots for this one; or choose so with --pass-over"
        }
        Unusable::NewerFold { .. } | Unusable::NewerFormat(_) => {
            "use the version that took it; or choose so with --pass-over"
        }
        Unusable::OtherStream { .. } => {
            "its snapshots are of no use for this stream: choose so with --pass-over, or use another place; \
             --delete-former removes them in time"
        }
        Unusable::BeyondTail { .. } => {
            "records that it covers are not in the stream, which may be another one: look where the stream \
             comes from; or choose so with --pass-over"
        }
        _ => "choose so with --pass-over",
    }
}
