//! Pages of a scan.
//!
//! A page's token has the commit as of which the next page reads and the key after which it continues, so
//! that all pages are of the same moment. It is opaque to clients.

use bytes::Bytes;
use esker_node::StateStore;
use esker_node::state::{Scan, StateEntry};
use esker_proto::state::v1::{ScanRequest, ScanResponse};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::permission::access;
use super::statehouse::AROUND;
use super::status::{invalid, refused, status};
use super::{Calls, MAX_ANSWER, blocking, convert};
use crate::auth::operation::Effect;
use crate::client::client;

/// Approximate bytes of a message of an answer: well below the 4 MiB that clients accept.
const MESSAGE: usize = 256 * 1024;
/// Bytes of a page: it ends early when it has this many.
const PAGE: usize = 4 * 1024 * 1024;
/// What a token begins with.
const VERSION: &str = "1";

/// Where the next page continues.
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
    /// A page, as messages of `ScanResponse`.
    pub(super) async fn scan_raw(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<BoxStream<'static, Result<Bytes, Status>>>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let request = request.into_inner();
        let store = self.of_agent(&access, Effect::Read, &request.namespace, &request.agent_id)?;
        let store = store.clone();
        let find = move |most| page(&store, request.clone(), most);
        let (messages, scan) = blocking::scan(&self.answers, client, find).await?;
        let permit = scan.end(messages.iter().map(Bytes::len).sum());
        let messages = stream::iter(messages.into_iter().map(Ok)).boxed();
        let answers = &self.answers;
        let messages = answers.perishable(messages, permit, |error| Err(refused(error)));
        Ok(Response::new(messages))
    }
}

/// The messages of a page; `None` if they have more bytes than they may have. Blocking.
fn page(
    store: &StateStore,
    request: ScanRequest,
    most: usize,
) -> Result<Option<Vec<Bytes>>, Status> {
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
        // The next page needs the commit.
        None if limit.is_some() => Some(store.commit_ts()),
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
        max_bytes: if limit.is_some() { PAGE } else { MAX_ANSWER },
        max_rows: None,
    };
    let mut messages = Messages::default();
    let mut last = String::new();
    let mut failed = None;
    let visited = store.visit(&scan, |entry| {
        last.clone_from(&entry.key);
        failed = messages.add(entry).err();
        failed.is_none() && messages.total <= most
    });
    if let Some(failed) = failed {
        return Err(failed);
    }
    if messages.total > most {
        return Ok(None);
    }
    visited.map_err(|error| status(&error))?;
    let next = match (limit, at) {
        (Some(_), Some(commit_ts)) if messages.any && has_more(store, &scan, &last)? => Token {
            commit_ts,
            after: last,
        }
        .text(),
        _ => String::new(),
    };
    Ok(Some(messages.end(&next)))
}

/// Whether a key follows.
fn has_more(store: &StateStore, scan: &Scan, last: &str) -> Result<bool, Status> {
    let one = Scan {
        after: Some(last.to_owned()),
        limit: Some(1),
        keys_only: true,
        ..scan.clone()
    };
    let one = store.scan(&one).map_err(|error| status(&error))?;
    Ok(!one.is_empty())
}

/// Messages of `ScanResponse`, encoded as keys are found: there is a tree of one value at a time.
#[derive(Default)]
struct Messages {
    done: Vec<Bytes>,
    message: Vec<u8>,
    total: usize,
    any: bool,
}

impl Messages {
    fn add(&mut self, entry: StateEntry) -> Result<(), Status> {
        let entry = convert::esker_entry(entry)?;
        let size = entry.encoded_len() + AROUND;
        self.any = true;
        self.total += size;
        if !self.message.is_empty() && self.message.len() + size > MESSAGE {
            self.close();
        }
        // Field `entries` of `ScanResponse`.
        prost::encoding::message::encode(1, &entry, &mut self.message);
        Ok(())
    }

    fn close(&mut self) {
        let mut message = std::mem::take(&mut self.message);
        // No more is held than what is counted.
        message.shrink_to_fit();
        self.done.push(message.into());
    }

    fn end(mut self, next: &str) -> Vec<Bytes> {
        let last = ScanResponse {
            next_page_token: next.to_owned(),
            ..ScanResponse::default()
        };
        // Concatenated messages are one message with the fields of both.
        self.message.extend_from_slice(&last.encode_to_vec());
        self.close();
        self.done
    }
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
        let mut written = Messages::default();
        for index in 0..10 {
            written.add(entry(index)).unwrap();
        }
        let messages = written.end("next");
        let messages = messages
            .into_iter()
            .map(|it| ScanResponse::decode(it).unwrap());
        let messages: Vec<_> = messages.collect();
        assert_eq!(messages.len(), 5);
        let keys = messages.iter().flat_map(|it| &it.entries);
        let keys: Vec<_> = keys.map(|it| it.key.as_str()).collect();
        assert_eq!(keys, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        assert!(messages[..4].iter().all(|it| it.next_page_token.is_empty()));
        assert_eq!(messages[4].next_page_token, "next");
    }

    #[test]
    fn an_empty_answer_is_one_message() {
        assert_eq!(Messages::default().end("").len(), 1);
    }
}
