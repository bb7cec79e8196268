//! `esker state agents` and `esker state namespaces`.
//!
//! The service has no call that lists agents, so the state is exported, and its keys are counted as they
//! arrive: they are sorted by namespace and agent. The export is not kept.

use std::fmt;
use std::io::{self, BufWriter, Read, Write as _};

use bytes::{Buf as _, Bytes};
use esker_proto::state::v1::ExportRequest;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::mpsc;

use super::NamespaceArg;
use super::connection::State;
use super::render;
use crate::failure::Failure;
use crate::output::{Written, written};
use crate::term::{Paint, count, plain};

/// Most pieces of the export that wait to be parsed, each of at most 1 MiB.
const PIECES_AHEAD: usize = 4;
/// Most agents that wait to be printed.
const ROWS_AHEAD: usize = 1024;

/// List the agents of a namespace, in order, with how many keys each has.
///
/// All are as of the same commit. An agent whose keys are all deleted is left out. The server reads its
/// whole state for this.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state agents
  esker state agents --namespace production --json | jq -r .agent_id")]
pub struct AgentsArgs {
    #[command(flatten)]
    of: NamespaceArg,

    /// Print one JSON object a line: namespace, agent_id, keys
    #[arg(long)]
    json: bool,
}

/// List the namespaces, in order, with how many agents and keys each has.
///
/// All are as of the same commit. The server reads its whole state for this.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state namespaces
  esker state namespaces --json | jq -r .namespace")]
pub struct NamespacesArgs {
    /// Print one JSON object a line: namespace, agents, keys
    #[arg(long)]
    json: bool,
}

/// An agent that has keys.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Agent {
    namespace: String,
    agent_id: String,
    keys: u64,
}

/// A namespace that has agents.
#[derive(Serialize)]
struct Namespace {
    namespace: String,
    agents: u64,
    keys: u64,
}

pub async fn agents(state: State, args: AgentsArgs) -> Result<(), Failure> {
    let mut out = Output::new(args.json, "   KEYS  AGENT");
    let each = |agent: Agent| {
        if agent.namespace != args.of.namespace {
            return Ok(Written::Yes);
        }
        let (keys, name) = (count(agent.keys), plain(&agent.agent_id));
        out.print(&agent, format_args!("{keys:>7}  {name}"))
    };
    each_agent(state, each).await?;
    out.end(format_args!(
        "There is no agent in namespace `{}`.",
        plain(&args.of.namespace)
    ))
}

pub async fn namespaces(state: State, args: NamespacesArgs) -> Result<(), Failure> {
    let mut out = Output::new(args.json, " AGENTS     KEYS  NAMESPACE");
    let mut last: Option<Namespace> = None;
    let mut print = |it: &Namespace| {
        let (agents, keys, name) = (count(it.agents), count(it.keys), plain(&it.namespace));
        out.print(it, format_args!("{agents:>7}  {keys:>7}  {name}"))
    };
    let each = |agent: Agent| {
        match &mut last {
            Some(last) if last.namespace == agent.namespace => {
                last.agents += 1;
                last.keys += agent.keys;
            }
            last => {
                let before = last.replace(Namespace {
                    namespace: agent.namespace,
                    agents: 1,
                    keys: agent.keys,
                });
                if let Some(before) = before {
                    return print(&before);
                }
            }
        }
        Ok(Written::Yes)
    };
    each_agent(state, each).await?;
    if let Some(last) = last {
        print(&last)?;
    }
    out.end(format_args!("There is no namespace yet."))
}

/// Lines on standard output.
struct Output {
    out: BufWriter<io::Stdout>,
    json: bool,
    head: &'static str,
    none: bool,
}

impl Output {
    fn new(json: bool, head: &'static str) -> Output {
        Output {
            out: BufWriter::new(io::stdout()),
            json,
            head,
            none: true,
        }
    }

    fn print(
        &mut self,
        object: &impl Serialize,
        text: fmt::Arguments<'_>,
    ) -> Result<Written, Failure> {
        if self.none && !self.json {
            written(writeln!(self.out, "{}", Paint::stdout().dim(self.head)))?;
        }
        self.none = false;
        match self.json {
            true => written(writeln!(self.out, "{}", render::line(object)?)),
            false => written(writeln!(self.out, "{text}")),
        }
    }

    fn end(mut self, none: fmt::Arguments<'_>) -> Result<(), Failure> {
        written(self.out.flush())?;
        if self.none && !self.json {
            remark!("{none}");
        }
        Ok(())
    }
}

/// Calls `each` for every agent that has keys, in order, until there are no more or standard output has no
/// reader.
async fn each_agent(
    mut state: State,
    mut each: impl FnMut(Agent) -> Result<Written, Failure>,
) -> Result<(), Failure> {
    let pieces = state.client.export(ExportRequest { commit_ts: None }).await;
    let mut pieces = match pieces.map_err(|e| state.failure(&e)) {
        Ok(pieces) => pieces.into_inner(),
        // No agent has keys.
        Err(failure) if failure.code == "nothing_committed" => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let (pieces_to, parser_from) = mpsc::channel(PIECES_AHEAD);
    let (parser_to, mut agents) = mpsc::channel(ROWS_AHEAD);
    // Parsing blocks until the next piece arrives, so it runs on a thread.
    let parser = std::thread::Builder::new();
    let parser =
        parser.spawn(move || parse(parser_from, |agent| parser_to.blocking_send(agent).is_ok()));
    let parser = parser.map_err(|e| Failure::wrong("io", format!("starting a thread: {e}")))?;
    let fetch = async {
        loop {
            match pieces.message().await {
                Ok(Some(piece)) => {
                    // The parser has ended, and returns the reason.
                    if pieces_to.send(piece.data).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => return Err(state.failure(&error)),
            }
        }
        drop(pieces_to);
        Ok(())
    };
    let show = async {
        while let Some(agent) = agents.recv().await {
            if let Written::NobodyReads = each(agent)? {
                break;
            }
        }
        // The parser ends, and the export with it.
        drop(agents);
        Ok::<_, Failure>(())
    };
    let (fetched, shown) = tokio::join!(fetch, show);
    fetched?;
    shown?;
    match parser.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::wrong(
            "server",
            format!("the export of the state cannot be read: {error}"),
        )),
        // A panic ends the process.
        Err(_) => Ok(()),
    }
}

/// The document as it arrives.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Counts the keys of each agent of a document. It ends early when `agent` reports that no more are wanted.
fn parse(
    pieces: mpsc::Receiver<Bytes>,
    agent: impl FnMut(Agent) -> bool,
) -> serde_json::Result<()> {
    let pieces = Pieces {
        pieces,
        current: Bytes::new(),
    };
    let mut counting = Counting {
        agent,
        last: None,
        wanted: true,
    };
    let mut deserializer = serde_json::Deserializer::from_reader(io::BufReader::new(pieces));
    let read = Document(&mut counting).deserialize(&mut deserializer);
    match counting.wanted {
        true => {
            read?;
            counting.end();
            Ok(())
        }
        false => Ok(()),
    }
}

struct Counting<F> {
    agent: F,
    last: Option<Agent>,
    wanted: bool,
}

impl<F: FnMut(Agent) -> bool> Counting<F> {
    fn key(&mut self, namespace: String, agent_id: String) {
        match &mut self.last {
            Some(last) if last.namespace == namespace && last.agent_id == agent_id => {
                last.keys += 1
            }
            _ => {
                self.end();
                self.last = Some(Agent {
                    namespace,
                    agent_id,
                    keys: 1,
                });
            }
        }
    }

    fn end(&mut self) {
        if let Some(last) = self.last.take() {
            self.wanted &= (self.agent)(last);
        }
    }
}

/// A JSON snapshot: of its members only `state` is parsed.
struct Document<'a, F>(&'a mut Counting<F>);
/// The member `state`: entries by key.
struct Keys<'a, F>(&'a mut Counting<F>);

impl<'de, F: FnMut(Agent) -> bool> DeserializeSeed<'de> for Document<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Agent) -> bool> Visitor<'de> for Document<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON snapshot")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "state" => map.next_value_seed(Keys(&mut *self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl<'de, F: FnMut(Agent) -> bool> DeserializeSeed<'de> for Keys<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Agent) -> bool> Visitor<'de> for Keys<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        #[derive(Deserialize)]
        struct Entry {
            #[serde(default)]
            deleted: bool,
        }
        while let Some(key) = map.next_key::<String>()? {
            let entry: Entry = map.next_value()?;
            if entry.deleted {
                continue;
            }
            let mut names = key.split(':');
            let (Some(namespace), Some(agent)) = (names.next(), names.next()) else {
                return Err(M::Error::custom(format!("`{key}` is no key")));
            };
            self.0.key(unescaped(namespace), unescaped(agent));
            if !self.0.wanted {
                return Err(M::Error::custom("nobody reads on"));
            }
        }
        Ok(())
    }
}

/// A name with the escapes `%3A` and `%25` replaced by `:` and `%`.
fn unescaped(name: &str) -> String {
    name.replace("%3A", ":").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a document that arrives in pieces of `size` bytes.
    fn agents(document: &str, size: usize) -> (Vec<Agent>, serde_json::Result<()>) {
        let (sender, receiver) = mpsc::channel(document.len() + 1);
        for piece in document.as_bytes().chunks(size) {
            sender.try_send(Bytes::copy_from_slice(piece)).unwrap();
        }
        drop(sender);
        let mut found = Vec::new();
        let parsed = parse(receiver, |agent| {
            found.push(agent);
            true
        });
        (found, parsed)
    }

    #[test]
    fn keys_are_counted_by_agent_and_deleted_ones_are_left_out() {
        let document = r#"{"version":1,"commit_ts":9,"state":{
            "default:a%3Ab:x":{"value":{"deleted":[1]},"version":1,"commit_ts":1},
            "default:a%3Ab:y":{"value":{},"version":1,"commit_ts":2},
            "default:gone:x":{"deleted":true,"version":2,"commit_ts":3},
            "p%2525:b:x":{"value":{"a":{"b":null}},"version":"9007199254740993","commit_ts":4}}}"#;
        let agent = |namespace: &str, agent_id: &str, keys| Agent {
            namespace: namespace.to_owned(),
            agent_id: agent_id.to_owned(),
            keys,
        };
        for size in [1, 7, 1 << 20] {
            let (found, parsed) = agents(document, size);
            parsed.unwrap();
            assert_eq!(found, [agent("default", "a:b", 2), agent("p%25", "b", 1)]);
        }
    }

    #[test]
    fn a_document_that_is_cut_off_is_an_error() {
        let (_, parsed) = agents(r#"{"state":{"n:a:k":{"value":{},"ver"#, 4);
        parsed.unwrap_err();
    }
}
