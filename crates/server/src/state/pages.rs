//! Pages of a scan.
//!
//! A page's token says as of which commit and after which key the next one goes on, so that all pages are
//! of the same moment. It is opaque to clients.

use esker_node::state::{Scan, StateEntry};
use esker_proto::state::v1::{ScanRequest, ScanResponse};
use prost::Message as _;
use tonic::Status;

use super::statehouse::{AROUND, too_much};
use super::status::{invalid, status};
use super::{Calls, MOST_ANSWER, convert};

/// Bytes of a message of an answer, about: well below the 4 MiB that clients take.
const MESSAGE: usize = 256 * 1024;
/// Bytes of a page: it ends early when it has as many.
const PAGE: usize = 4 * 1024 * 1024;
/// What a token begins with.
const VERSION: &str = "1";

/// Where the next page goes on.
#[derive(Debug, PartialEq)]
struct Token {
    commit_ts: u64,
    after: String,
}

impl Token {
    fn text(&self) -> String {
        format!("{VERSION}.{}.{}", self.commit_ts, self.after)
    }

    fn read(text: &str) -> Result<Token, Status> {
        let mut parts = text.splitn(3, '.');
        let (version, commit_ts, after) = (parts.next(), parts.next(), parts.next());
        let commit_ts = commit_ts.and_then(|it| it.parse().ok());
        match (version, commit_ts, after) {
            (Some(VERSION), Some(commit_ts), Some(after)) => Ok(Token {
                commit_ts,
                after: after.to_owned(),
            }),
            _ => Err(invalid(
                "page_token is none that a page had: give it as it was, or leave it empty",
            )),
        }
    }
}

impl Calls {
    /// The messages of a page. Blocking.
    pub(super) fn page(&self, request: ScanRequest) -> Result<Vec<ScanResponse>, Status> {
        let limit = match request.page_size {
            0 => None,
            size => Some(size as usize),
        };
        let token = match request.page_token.as_str() {
            "" => None,
            text => Some(Token::read(text)?),
        };
        let at = match &token {
            Some(token) => Some(token.commit_ts),
            None if request.commit_ts.is_some() => request.commit_ts,
            // The next page must know.
            None if limit.is_some() => {
                let standing = self.store.status().map_err(|error| status(&error))?;
                Some(standing.commit_ts)
            }
            None => None,
        };
        let scan = Scan {
            namespace: request.namespace,
            agent_id: request.agent_id,
            prefix: request.prefix,
            at,
            after: token.map(|token| token.after),
            limit,
            keys_only: request.keys_only,
            max_bytes: if limit.is_some() { PAGE } else { MOST_ANSWER },
        };
        let entries = self.store.scan(&scan).map_err(|error| status(&error))?;
        let next = match (limit, at, entries.last()) {
            (Some(_), Some(commit_ts), Some(last)) if self.has_more(&scan, last)? => Token {
                commit_ts,
                after: last.key.clone(),
            }
            .text(),
            _ => String::new(),
        };
        messages(entries, next)
    }

    /// Whether a key follows.
    fn has_more(&self, scan: &Scan, last: &StateEntry) -> Result<bool, Status> {
        let one = Scan {
            after: Some(last.key.clone()),
            limit: Some(1),
            keys_only: true,
            ..scan.clone()
        };
        let one = self.store.scan(&one).map_err(|error| status(&error))?;
        Ok(!one.is_empty())
    }
}

fn messages(entries: Vec<StateEntry>, next: String) -> Result<Vec<ScanResponse>, Status> {
    let mut messages = vec![ScanResponse::default()];
    let (mut total, mut bytes) = (0_usize, 0_usize);
    for entry in entries {
        let entry = convert::esker_entry(entry)?;
        let size = entry.encoded_len() + AROUND;
        total += size;
        if total > MOST_ANSWER {
            return Err(too_much());
        }
        if bytes > 0 && bytes + size > MESSAGE {
            messages.push(ScanResponse::default());
            bytes = 0;
        }
        bytes += size;
        if let Some(message) = messages.last_mut() {
            message.entries.push(entry);
        }
    }
    if let Some(message) = messages.last_mut() {
        message.next_page_token = next;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_whatever_the_key() {
        for after in ["", "a", "a.b.c", "é:%/\n", "1.2.3"] {
            let token = Token {
                commit_ts: 12,
                after: after.into(),
            };
            assert_eq!(Token::read(&token.text()).unwrap(), token);
        }
        for text in ["x", "1", "1.2", "2.3.k", "1.x.k", "1.-1.k"] {
            let error = Token::read(text).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn an_answer_comes_in_messages_that_every_client_takes() {
        let entry = |index: usize| StateEntry {
            key: format!("{index}"),
            value: format!("{{\"a\":\"{}\"}}", "x".repeat(100_000)).into(),
            version: 1,
            commit_ts: 1,
        };
        let messages = messages((0..10).map(entry).collect(), "next".into()).unwrap();
        assert_eq!(messages.len(), 5);
        let keys = messages.iter().flat_map(|it| &it.entries);
        let keys: Vec<_> = keys.map(|it| it.key.as_str()).collect();
        assert_eq!(keys, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        assert!(messages[..4].iter().all(|it| it.next_page_token.is_empty()));
        assert_eq!(messages[4].next_page_token, "next");
    }

    #[test]
    fn an_empty_answer_is_one_message() {
        assert_eq!(messages(vec![], String::new()).unwrap().len(), 1);
    }
}
