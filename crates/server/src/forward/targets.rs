//! Which node answers a request: for each route, what decides it.
//!
//! The rules of access have every route of the router (a test of theirs sees to that); a test here sees to it
//! that each of those has a target.

use std::time::Duration;

use axum::RequestExt as _;
use axum::body::Body;
use axum::extract::{MatchedPath, RawPathParams, Request};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;
use s2_common::basin::BasinName;
use s2_common::stream::StreamName;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::peers::{Peers, read_index_by};
use super::replica::Read;
use crate::api::{Bodies, Coding, Kept};
use crate::auth::Access;
use crate::auth::operation::Effect;
use crate::auth::rules::Rule;
use crate::client::client;
use crate::request_guard::is_grpc;

/// What decides which node answers the requests of a route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// The node that gets it.
    Here,
    /// The node that gets it, once it has applied what the catalog has committed.
    CatalogState,
    /// The node that gets it, once it has applied what all partitions have committed.
    WholeState,
    /// The leader of the catalog.
    Catalog,
    /// The leader of the partition of the stream that header and path name.
    Stream,
    /// The same; what the leader refuses to propose is given back whole
    /// ([`GivenBack`](crate::forwarded::GivenBack)).
    Append,
    /// The node that gets it, from its replica of that partition; the leader, if it has none or the stream is not in it.
    StreamReplica,
    /// The same of a stream that header and body name.
    NewStream,
    /// The leader of the state store's partition.
    StateStore,
    /// The leader of the partition whose number is in the path.
    Partition,
}

use Target::{
    Append, Catalog, CatalogState, Here, NewStream, Partition, StateStore, Stream, StreamReplica,
    WholeState,
};

/// Method, path and target of each route over HTTP.
pub(crate) const TARGETS: &[(&str, &str, Target)] = &[
    ("GET", "/health", Here),
    ("GET", "/ping", Here),
    ("GET", "/health/live", Here),
    ("GET", "/health/ready", Here),
    ("GET", "/metrics", Here),
    ("GET", "/v1/basins", CatalogState),
    ("POST", "/v1/basins", Catalog),
    ("GET", "/v1/basins/{basin}", CatalogState),
    ("PUT", "/v1/basins/{basin}", Catalog),
    ("PATCH", "/v1/basins/{basin}", Catalog),
    ("DELETE", "/v1/basins/{basin}", Catalog),
    ("GET", "/v1/streams", WholeState),
    ("POST", "/v1/streams", NewStream),
    ("GET", "/v1/streams/{stream}", StreamReplica),
    ("PUT", "/v1/streams/{stream}", Stream),
    ("PATCH", "/v1/streams/{stream}", Stream),
    ("DELETE", "/v1/streams/{stream}", Stream),
    ("GET", "/v1/streams/{stream}/records", StreamReplica),
    ("POST", "/v1/streams/{stream}/records", Append),
    ("GET", "/v1/streams/{stream}/records/tail", StreamReplica),
    ("GET", "/v1/access-tokens", CatalogState),
    ("POST", "/v1/access-tokens", Catalog),
    ("DELETE", "/v1/access-tokens/{id}", Catalog),
    ("GET", "/v1/metrics", WholeState),
    ("GET", "/v1/metrics/{basin}", WholeState),
    ("GET", "/v1/metrics/{basin}/{stream}", WholeState),
    // The one location is the server's own, whichever node is asked.
    ("GET", "/v1/locations", Here),
    ("GET", "/v1/locations/default", Here),
    ("PUT", "/v1/locations/default", Here),
    ("GET", "/esker/v1/openapi.json", Here),
    ("GET", "/esker/v1/status", Here),
    ("GET", "/esker/v1/history", Here),
    ("GET", "/esker/v1/state", StateStore),
    ("GET", "/esker/v1/state/agents", StateStore),
    ("GET", "/esker/v1/state/keys", StateStore),
    ("GET", "/esker/v1/state/value", StateStore),
    ("GET", "/esker/v1/state/versions", StateStore),
    ("GET", "/esker/v1/state/commits", StateStore),
    // Each node asks the others, and the leaders.
    ("GET", "/esker/v1/cluster", Here),
    ("POST", "/esker/v1/cluster/nodes/{node}/remove", Here),
    ("POST", "/esker/v1/cluster/nodes/{node}/drain", Here),
    ("POST", "/esker/v1/cluster/nodes/{node}/activate", Here),
    (
        "POST",
        "/esker/v1/cluster/partitions/{partition}/leader",
        Here,
    ),
    (
        "POST",
        "/esker/v1/cluster/partitions/{partition}/check",
        Here,
    ),
    (
        "POST",
        "/esker/v1/cluster/partitions/{partition}/trust",
        Here,
    ),
    ("GET", "/esker/v1/streams/{stream}/position", Stream),
    // The leader has counted the appends.
    ("GET", "/esker/v1/streams/{stream}/activity", Stream),
    ("POST", "/esker/v1/basins/{basin}/adopt", Catalog),
    ("GET", "/esker/v1/partitions/{partition}/snapshots", Here),
    (
        "POST",
        "/esker/v1/partitions/{partition}/snapshots",
        Partition,
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots/{snapshot}",
        Here,
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots/{old}/diff/{new}",
        Here,
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots/{snapshot}/files",
        Here,
    ),
    // The leader sweeps.
    ("GET", "/esker/v1/partitions/{partition}/sweep", Partition),
    // It may repair, and one node at a time does that.
    (
        "POST",
        "/esker/v1/partitions/{partition}/snapshots/verify",
        Partition,
    ),
    // It compares a snapshot with what this node has.
    (
        "POST",
        "/esker/v1/partitions/{partition}/snapshots/{snapshot}/prove",
        Here,
    ),
    ("GET", "/esker/v1/partitions/{partition}/objects/why", Here),
    ("POST", "/esker/v1/partitions/{partition}/prune", Partition),
    ("POST", "/esker/v1/access-tokens/confirm", Catalog),
];

/// Most bytes of a body that is read for the name of a stream. A stream's configuration has some hundred.
const MAX_NAMING_BODY: usize = 64 * 1024;
/// How long such a body may take.
const NAMING_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request is answered.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    /// By this node.
    Here,
    /// By this node, once it has applied what these partitions have committed.
    AfterReading(std::ops::Range<u64>),
    /// By the leader of a partition.
    Leader { partition: u64, kind: Kind },
    /// By this node, from its replica, if that has the stream; else by the leader.
    Replica(Read),
}

/// What a request to a leader does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// It changes nothing, so it may be sent again, and the leader has to make sure that it still leads before it
    /// answers.
    Read,
    /// It changes something.
    Write,
    /// It appends, and a leader that does not propose it gives it back. A session of appends is one of these too, and
    /// is not given back.
    Append,
}

/// Why it is not known where a request is answered.
#[derive(Debug)]
pub(super) enum Unplaced {
    /// The catalog has no leader, or does not answer.
    Catalog(String),
    /// The body that names the stream came too slowly.
    Slow,
    /// There is no memory for the body now.
    NoMemory,
}

impl Target {
    /// The target of a route. `HEAD` is answered as `GET` is; what is not in the table is answered by the node
    /// that gets it: the router refuses it.
    fn of(method: &Method, path: &str) -> Target {
        let method = match *method {
            Method::HEAD => "GET",
            _ => method.as_str(),
        };
        let found = TARGETS
            .iter()
            .find(|(of, at, _)| *of == method && *at == path);
        found.map_or(Here, |(.., target)| *target)
    }

    /// The target of a gRPC method. All of the state store is at one node, because it holds the open transactions.
    fn of_call(path: &str) -> Target {
        match Rule::of_call(path) {
            Some(Rule::State(_)) => StateStore,
            _ => Here,
        }
    }
}

/// Whether a request changes nothing.
fn is_read(request: &Request) -> bool {
    let path = request.uri().path();
    match is_grpc(path) {
        true => Rule::of_call(path) == Some(Rule::State(Effect::Read)),
        false => [Method::GET, Method::HEAD].contains(request.method()),
    }
}

/// Where a request is answered. If its body has to be read for that, it is put back as it was, but for its
/// content coding. What a catalog without a leader is waited for is `wait`.
pub(super) async fn place(
    peers: &dyn Peers,
    mut request: Request,
    wait: Duration,
    bodies: &Bodies,
) -> Result<(Place, Request), Unplaced> {
    let path = request.uri().path();
    let target = match is_grpc(path) {
        true => Target::of_call(path),
        false => {
            let route = request.extensions().get::<MatchedPath>();
            Target::of(request.method(), route.map_or("", MatchedPath::as_str))
        }
    };
    let kind = match target {
        _ if is_read(&request) => Kind::Read,
        Append => Kind::Append,
        _ => Kind::Write,
    };
    let leader = |partition| Place::Leader { partition, kind };
    let place = match target {
        Here => Place::Here,
        CatalogState => Place::AfterReading(0..1),
        WholeState => Place::AfterReading(0..peers.partitions()),
        Catalog => leader(0),
        StateStore => leader(peers.state_partition()),
        Partition => {
            let number = parameter(&mut request, "partition").await;
            match number.and_then(|number| number.parse::<u64>().ok()) {
                Some(number) if number < peers.partitions() => leader(number),
                // The handler has the error.
                _ => Place::Here,
            }
        }
        Stream | Append | StreamReplica | NewStream => {
            let name = match target {
                NewStream => {
                    let memory = bodies.kept(client(request.extensions()));
                    let (name, with_body) = named_in_body(request, memory).await?;
                    request = with_body;
                    name
                }
                _ => parameter(&mut request, "stream").await,
            };
            let named = Named {
                basin: basin(request.headers()),
                stream: name.and_then(|name| name.parse().ok()),
                access: Access::of(request.extensions()).ok(),
            };
            match named.found(peers, wait).await? {
                Some(read) if target == StreamReplica => Place::Replica(read),
                Some(read) => leader(read.partition),
                // Names that are none, and basins that do not exist: the handler has the error.
                None => Place::Here,
            }
        }
    };
    Ok((place, request))
}

/// A parameter of the path.
async fn parameter(request: &mut Request, name: &str) -> Option<String> {
    let parameters = request.extract_parts::<RawPathParams>().await.ok()?;
    let found = parameters.iter().find(|(of, _)| *of == name);
    found.map(|(_, value)| value.to_owned())
}

/// The stream that a request names.
struct Named {
    basin: Option<BasinName>,
    stream: Option<StreamName>,
    access: Option<Access>,
}

impl Named {
    /// The stream under the name that the node knows it by, and its partition; `None` if the names are none, or the
    /// basin does not exist. A basin that this node does not know may be newer than what it has applied.
    async fn found(self, peers: &dyn Peers, wait: Duration) -> Result<Option<Read>, Unplaced> {
        let (Some(basin), Some(name), Some(access)) = (self.basin, self.stream, self.access) else {
            return Ok(None);
        };
        let Ok(stream) = access.known_name(name) else {
            return Ok(None);
        };
        let mut partition = peers.stream_partition(&basin, &stream);
        if partition.is_none() {
            let read = read_index_by(peers, 0, Instant::now() + wait).await;
            read.map_err(Unplaced::Catalog)?;
            partition = peers.stream_partition(&basin, &stream);
        }
        Ok(partition.map(|partition| Read {
            partition,
            basin,
            stream,
        }))
    }
}

fn basin(headers: &HeaderMap) -> Option<BasinName> {
    headers.get("s2-basin")?.to_str().ok()?.parse().ok()
}

/// What is read of a body that names a stream.
#[derive(Deserialize)]
struct NewStreamBody {
    stream: String,
}

/// The stream that a body names, if it does, and the request with the body as it came. What is longer than any such
/// body is left to the handler.
///
/// What has arrived counts as memory of bodies, which is divided by principals. So nobody waits for the slow bodies of
/// others: whoever sends 1 byte holds 1 byte.
async fn named_in_body(
    request: Request,
    memory: Kept,
) -> Result<(Option<String>, Request), Unplaced> {
    let (head, body) = request.into_parts();
    let begun = timeout(NAMING_TIMEOUT, begin(body, memory)).await;
    let begun = begun.map_err(|_| Unplaced::Slow)?;
    let (bytes, rest) = begun.ok_or(Unplaced::NoMemory)?;
    let (name, body) = match rest {
        None => {
            let plain = match Coding::of(&head.headers) {
                Ok(None) => Some(bytes.clone()),
                Ok(Some(coding)) => coding.decode(bytes.clone(), MAX_NAMING_BODY).await.ok(),
                // The handler refuses it.
                Err(_) => None,
            };
            let named =
                plain.and_then(|plain| serde_json::from_slice::<NewStreamBody>(&plain).ok());
            (named.map(|named| named.stream), Body::from(bytes))
        }
        Some(rest) => {
            let begin = futures::stream::once(async { Ok(bytes) });
            let all = begin.chain(rest.into_data_stream());
            (None, Body::from_stream(all))
        }
    };
    Ok((name, Request::from_parts(head, body)))
}

/// The beginning of a body, and the rest if it is longer than a body that names a stream. `None` if there is no memory.
async fn begin(mut body: Body, mut memory: Kept) -> Option<(Bytes, Option<Body>)> {
    let mut bytes = BytesMut::new();
    while bytes.len() <= MAX_NAMING_BODY {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    if !memory.cover(bytes.len() + data.len()) {
                        return None;
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Some(Err(error)) => {
                let failed = futures::stream::once(async { Err::<Bytes, _>(error) });
                return Some((bytes.freeze(), Some(Body::from_stream(failed))));
            }
            None => return Some((bytes.freeze(), None)),
        }
    }
    Some((bytes.freeze(), Some(body)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rules::{GRPC_RULES, RULES};

    #[test]
    fn every_route_has_one_target() {
        let of = |method: &str, path: &str| {
            let found = TARGETS.iter();
            found.filter(|(m, p, _)| (*m, *p) == (method, path)).count()
        };
        for (method, path, _) in RULES {
            assert_eq!(of(method, path), 1, "{method} {path}");
        }
        assert_eq!(TARGETS.len(), RULES.len(), "a target of no route");
    }

    #[test]
    fn a_target_is_found_by_what_the_path_has() {
        for (method, path, target) in TARGETS {
            match target {
                Stream | Append => assert!(path.contains("{stream}"), "{method} {path}"),
                StreamReplica => {
                    assert!(path.contains("{stream}"), "{method} {path}");
                    assert_eq!(*method, "GET", "{path}");
                }
                Partition => assert!(path.contains("{partition}"), "{method} {path}"),
                CatalogState | WholeState => assert_eq!(*method, "GET", "{path}"),
                _ => {}
            }
        }
    }

    #[test]
    fn every_method_of_the_state_store_is_at_one_node() {
        for (path, rule) in GRPC_RULES {
            let wanted = match rule {
                Rule::State(_) => StateStore,
                _ => Here,
            };
            assert_eq!(Target::of_call(path), wanted, "{path}");
        }
        assert!(is_grpc(GRPC_RULES[0].0));
    }

    #[tokio::test]
    async fn the_name_in_a_body_is_found_in_whatever_coding_and_the_body_stays_as_it_came() {
        use async_compression::tokio::write::GzipEncoder;
        use tokio::io::AsyncWriteExt as _;

        let text = r#"{"stream":"a/b","config":null}"#;
        let mut gzip = GzipEncoder::new(Vec::new());
        gzip.write_all(text.as_bytes()).await.unwrap();
        gzip.shutdown().await.unwrap();
        for (coding, body) in [
            (None, text.as_bytes().to_vec()),
            (Some("gzip"), gzip.into_inner()),
        ] {
            let mut request = Request::new(Body::from(body.clone()));
            if let Some(coding) = coding {
                let coding = http::HeaderValue::from_static(coding);
                request
                    .headers_mut()
                    .insert(http::header::CONTENT_ENCODING, coding);
            }
            let (name, request) = named_in_body(request, memory(1)).await.unwrap();
            assert_eq!(name.as_deref(), Some("a/b"), "{coding:?}");
            let keeps = request
                .headers()
                .contains_key(http::header::CONTENT_ENCODING);
            assert_eq!(keeps, coding.is_some());
            let left = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(left, body, "it is as it came");
        }
    }

    fn bodies() -> Bodies {
        Bodies::new(64 << 20, 16 << 20, Duration::from_secs(10))
    }

    fn memory_of(bodies: &Bodies, principal: u64) -> Kept {
        bodies.kept(esker_node::Client {
            principal,
            connection: 0,
        })
    }

    fn memory(principal: u64) -> Kept {
        memory_of(&bodies(), principal)
    }

    #[tokio::test(start_paused = true)]
    async fn the_slow_bodies_of_one_client_delay_those_of_no_other() {
        let (mut slow, bodies) = (tokio::task::JoinSet::new(), bodies());
        for _ in 0..2500 {
            let begun = futures::stream::once(async { Ok::<_, std::io::Error>(Bytes::from("{")) });
            let body = begun.chain(futures::stream::pending());
            let request = Request::new(Body::from_stream(body));
            slow.spawn(named_in_body(request, memory_of(&bodies, 1)));
        }
        tokio::task::yield_now().await;
        let begun = tokio::time::Instant::now();
        let request = Request::new(Body::from(r#"{"stream":"a"}"#));
        let (name, _) = named_in_body(request, memory_of(&bodies, 2)).await.unwrap();
        assert_eq!(
            (name.as_deref(), begun.elapsed()),
            (Some("a"), Duration::ZERO)
        );
        while let Some(ended) = slow.join_next().await {
            assert!(matches!(ended.unwrap(), Err(Unplaced::Slow)));
        }
        let time = begun.elapsed().as_secs();
        assert_eq!(
            time,
            NAMING_TIMEOUT.as_secs(),
            "and each of them has its own time"
        );
    }

    #[tokio::test]
    async fn a_body_for_which_there_is_no_memory_is_refused_and_no_other_principals() {
        let bodies = bodies();
        let mut held = memory_of(&bodies, 3);
        let most = (1..).find(|kib| !held.cover(kib * 1024)).unwrap();
        let small: Vec<_> = std::iter::from_fn(|| {
            let mut kept = memory_of(&bodies, 3);
            let has = [64 * 1024, 1024, 1]
                .into_iter()
                .any(|bytes| kept.cover(bytes));
            has.then_some(kept)
        })
        .collect();
        assert!(most > 1024 && !small.is_empty());
        let request = || Request::new(Body::from(r#"{"stream":"a"}"#));
        let refused = named_in_body(request(), memory_of(&bodies, 3)).await;
        assert!(matches!(refused, Err(Unplaced::NoMemory)));
        assert!(
            named_in_body(request(), memory_of(&bodies, 4))
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_body_that_names_no_stream_is_left_to_the_handler() {
        let long = vec![b' '; 3 * MAX_NAMING_BODY];
        for body in [b"{".to_vec(), Vec::new(), long] {
            let request = Request::new(Body::from(body.clone()));
            let (name, request) = named_in_body(request, memory(1)).await.unwrap();
            assert_eq!(name, None);
            let left = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(left, body);
        }
    }
}
