//! Exports and imports of JSON snapshots.

use bytes::Bytes;
use esker_node::StateStore;
use esker_node::state::{Importing, StateError};
use esker_proto::state::v1::{
    ExportResponse, ImportOptions, ImportRequest, ImportResponse, import_request::Part,
};
use esker_proto::value;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tonic::{Status, Streaming};

use super::status::{invalid, status};

/// Bytes of a message of an export, at most.
const PIECE: usize = 1024 * 1024;

/// A snapshot's text as messages, none of which is large.
pub(super) fn export(
    pieces: BoxStream<'static, Result<Bytes, StateError>>,
) -> BoxStream<'static, Result<ExportResponse, Status>> {
    let cut = |piece: Result<Bytes, StateError>| {
        let parts: Vec<_> = match piece {
            Ok(mut bytes) => std::iter::from_fn(|| match bytes.len() {
                0 => None,
                length => Some(bytes.split_to(length.min(PIECE))),
            })
            .map(|data| Ok(ExportResponse { data }))
            .collect(),
            Err(error) => vec![Err(status(&error))],
        };
        stream::iter(parts)
    };
    pieces.flat_map(cut).boxed()
}

/// Takes a snapshot's text from a client.
pub(super) async fn import(
    store: &StateStore,
    importing: Importing,
    mut messages: Streaming<ImportRequest>,
) -> Result<ImportResponse, Status> {
    let first = messages.message().await?.and_then(|it| it.part);
    let Some(Part::Options(ImportOptions { replace })) = first else {
        return Err(invalid(
            "an import begins with its options: send ImportOptions in the first message, the text in \
             those after it",
        ));
    };
    let done = store.import(importing, pieces(messages), replace).await;
    let done = done.map_err(|error| status(&error))?;
    Ok(ImportResponse {
        imported_commit_ts: done.imported_commit_ts,
        commit_ts: done.commit_ts,
        keys: done.keys,
        bytes: done.bytes,
    })
}

/// Whether clients can read a value unchanged once it is stored.
pub(crate) fn check_value(json: &[u8]) -> Result<(), String> {
    value::check_json(json).map_err(|error| error.to_string())
}

/// The pieces of the text. A client that goes away in the middle is an error, not the end of the text.
fn pieces(messages: Streaming<ImportRequest>) -> BoxStream<'static, Result<Bytes, StateError>> {
    messages
        .map(|message| match message {
            Ok(ImportRequest {
                part: Some(Part::Data(data)),
            }) => Ok(data),
            Ok(_) => Err(StateError::Invalid(
                "options come once, in the first message of an import".into(),
            )),
            Err(error) => Err(StateError::Invalid(format!(
                "the snapshot was not sent to its end: {}",
                error.message()
            ))),
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_large_piece_is_sent_in_several_messages_and_an_error_ends_it() {
        let given = vec![
            Ok(Bytes::from(vec![7; PIECE * 2 + 1])),
            Ok(Bytes::new()),
            Ok(Bytes::from_static(b"end")),
            Err(StateError::Stopping),
        ];
        let sent: Vec<_> = export(stream::iter(given).boxed()).collect().await;
        let sizes: Vec<_> = sent
            .iter()
            .map(|it| it.as_ref().map(|it| it.data.len()).ok())
            .collect();
        assert_eq!(sizes, [Some(PIECE), Some(PIECE), Some(1), Some(3), None]);
    }
}
