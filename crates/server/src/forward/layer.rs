//! The layer that answers a request here, or sends it to the node that does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, Uri, Version};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use super::Forwarder;
use super::cut::Cut;
use super::envelope::{Envelope, MAX_HOPS};
use super::framing::Framing;
use super::hop_headers::{NOT_LEADER, SERVED_BY, strip, strip_request};
use super::incoming::{Answering, Incoming};
use super::lanes::{asks_for_events, lane};
use super::outgoing::Outgoing;
use super::peers::{Connection, Leader, Peers, RETRY_PAUSE, read_index_by};
use super::replica;
use super::series::{self, Open, Outcome};
use super::targets::{Place, Unplaced, place};
use crate::answers::AtStall;
use crate::api::ServiceError;
use crate::auth::{Access, PeerAddress};
use crate::client::client;
use crate::forwarded::{Forwarded, is_forwarded, is_not_proposed};
use crate::request_guard::{content_type, is_grpc};
use crate::state::status;

/// Answers a request, here or at the node that leads what it is about.
pub(crate) async fn forward(
    State(forwarder): State<Forwarder>,
    request: Request,
    next: Next,
) -> Response {
    let is_call = is_grpc(request.uri().path());
    let peers = &*forwarder.peers;
    let wait = wait_of(&forwarder, &request);
    let memory = forwarder.bodies.kept(client(request.extensions()));
    let (place, request) = match place(peers, request, wait, memory).await {
        Ok(placed) => placed,
        Err(Unplaced::Slow) => return ServiceError::SlowBody.into_response(),
        Err(Unplaced::NoMemory) => return ServiceError::BodiesFull.into_response(),
        Err(Unplaced::Catalog(why)) => return no_leader(is_call, 0, &why),
    };
    let deadline = Instant::now() + wait;
    let to_leader = |partition, is_read| Way {
        forwarder: &forwarder,
        partition,
        is_read,
        is_call,
        deadline,
    };
    match place {
        Place::Here => next.run(request).await,
        Place::Replica(read) => {
            let leads = peers.leader(read.partition) == Leader::Here;
            // Another node that has sent it wants the leader's answer.
            let is_own = !leads && !is_forwarded(request.extensions());
            // A leader that becomes known then has the rest of the time.
            let by = Instant::now() + wait / 2;
            match is_own && read.may_be_answered(peers, by).await {
                true => {
                    series::read_here();
                    let answer = next.run(request).await;
                    replica::answered(&forwarder.contacts, read.partition, answer)
                }
                false => to_leader(read.partition, true).go(request, next).await,
            }
        }
        Place::AfterReading(partitions) => {
            if let Some(why) = peers.refusal() {
                return no_leader(is_call, partitions.start, &not_taken(&why));
            }
            let read = partitions.map(|partition| async move {
                let read = read_index_by(peers, partition, deadline).await;
                read.map_err(|why| (partition, why))
            });
            match futures::future::try_join_all(read).await {
                Ok(_) => next.run(request).await,
                Err((partition, why)) => no_leader(is_call, partition, &why),
            }
        }
        Place::Leader { partition, is_read } => {
            to_leader(partition, is_read).go(request, next).await
        }
    }
}

/// How long a request waits for a leader: as long as the node waits that has sent it.
fn wait_of(forwarder: &Forwarder, request: &Request) -> Duration {
    let forwarded = request.extensions().get::<Forwarded>();
    let wait = forwarded.map(|forwarded| forwarded.wait);
    wait.map_or(forwarder.leader_timeout, |wait| {
        wait.min(forwarder.leader_timeout)
    })
}

/// The way of a request to the leader of its partition.
struct Way<'a> {
    forwarder: &'a Forwarder,
    partition: u64,
    is_read: bool,
    is_call: bool,
    deadline: Instant,
}

/// What became of an attempt.
enum Sent {
    Answered(Response),
    /// The node does not lead, and names the one that does, if it knows. Nothing happened.
    NotLeader(Option<u64>),
    /// Nothing happened.
    Unsent(String),
    /// It may have happened.
    Lost(String),
    /// The client has gone.
    Abandoned,
}

impl Way<'_> {
    fn peers(&self) -> &Arc<dyn Peers> {
        &self.forwarder.peers
    }

    async fn go(mut self, request: Request, next: Next) -> Response {
        let known = self.peers().leader(self.partition);
        let leads = known == Leader::Here && self.may_answer().await;
        let is_session = content_type(request.headers()).is_some_and(|kind| kind == "s2s/proto");
        let is_repeated = !self.is_read && !self.is_call && !is_session;
        if leads && !is_repeated {
            return self.answer_here(request, next).await;
        }
        if is_forwarded(request.extensions()) {
            // Whoever has sent it decides what becomes of it.
            if !leads {
                return self.not_leader();
            }
            let answer = next.run(request).await;
            return match is_not_proposed(answer.extensions()) {
                true => self.not_leader(),
                false => answer,
            };
        }
        if !leads && let Some(why) = self.peers().refusal() {
            return self.unreachable(Some(&not_taken(&why)));
        }
        let memory = self.forwarder.bodies.kept(client(request.extensions()));
        let outgoing = Outgoing::new(request, memory);
        let mut hop = 1;
        let mut hint = leads.then_some(Leader::Here);
        let mut is_confirmed = leads;
        let mut why = None;
        let mut waiting = None;
        loop {
            let leader = match hint.take() {
                Some(leader) => leader,
                None => {
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    self.peers().wait_for_leader(self.partition, left).await
                }
            };
            let node = match leader {
                Leader::Here => {
                    if std::mem::take(&mut is_confirmed) || self.may_answer().await {
                        if !is_repeated {
                            return match outgoing.into_request() {
                                Some(request) => self.answer_here(request, next).await,
                                None => self.unreachable(why.as_deref()),
                            };
                        }
                        let Some(request) = outgoing.request_here() else {
                            return self.unreachable(why.as_deref());
                        };
                        let answer = next.clone().run(request).await;
                        if !is_not_proposed(answer.extensions()) {
                            return answer;
                        }
                        if why.is_none() {
                            // However long it was here, the wait for the new leader begins now.
                            let deadline = Instant::now() + self.forwarder.leader_timeout;
                            self.deadline = self.deadline.max(deadline);
                        }
                        why = Some("this node has given the leadership away".to_owned());
                    }
                    None
                }
                Leader::At(node) => Some(node),
                Leader::Unknown => None,
            };
            if let Some(node) = node {
                match self.send(node, &outgoing, hop, is_session).await {
                    Sent::Answered(response) => {
                        series::ended(Outcome::Answered);
                        return response;
                    }
                    Sent::NotLeader(Some(leader)) if hop < MAX_HOPS && leader != node => {
                        hop += 1;
                        hint = Some(Leader::At(leader));
                        continue;
                    }
                    Sent::NotLeader(_) => why = Some(format!("node {node} does not lead it")),
                    Sent::Unsent(cause) => {
                        why = Some(format!("node {node} cannot be reached: {cause}"));
                    }
                    Sent::Lost(cause) => return self.lost(node, &cause),
                    Sent::Abandoned => {
                        series::ended(Outcome::Abandoned);
                        // Nobody gets it.
                        return ServiceError::SlowBody.into_response();
                    }
                }
                hop = 1;
            }
            outgoing.take_back();
            if waiting.is_none() {
                waiting = self.forwarder.waiting.try_acquire().ok();
            }
            if waiting.is_none() || Instant::now() + RETRY_PAUSE >= self.deadline {
                return self.unreachable(why.as_deref());
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// The answer of this node, which leads.
    async fn answer_here(&self, request: Request, next: Next) -> Response {
        let may_last = self.is_read && (!self.is_call || lasts(request.uri().path()));
        let answer = next.run(request).await;
        match may_last {
            true => replica::answered(&self.forwarder.contacts, self.partition, answer),
            false => answer,
        }
    }

    /// Whether this node, which leads as far as it knows, may answer: for a read, a majority has to confirm it, and
    /// nothing is proposed while the leadership moves.
    async fn may_answer(&self) -> bool {
        if !self.is_read {
            return !self.peers().is_moving(self.partition);
        }
        let read = self.peers().read_index(self.partition);
        matches!(timeout_at(self.deadline, read).await, Ok(Ok(())))
    }

    /// Sends the request to a node.
    async fn send(&self, node: u64, outgoing: &Outgoing, hop: u32, is_session: bool) -> Sent {
        let principal = client(&outgoing.head().extensions).principal;
        let may_last = is_session || self.is_call || asks_for_events(&outgoing.head().headers);
        let lane = lane(principal, may_last);
        let connection = match self.peers().connection_in_lane(node, lane) {
            Ok(connection) => connection,
            Err(why) => return Sent::Unsent(why),
        };
        let Some(request) = self.request(outgoing, hop) else {
            return Sent::Unsent("the beginning of the request was not kept".to_owned());
        };
        series::sent(hop);
        let open = Open::begin();
        let begun = Instant::now();
        let known = self.peers().leader(self.partition);
        let deposed = self.forwarder.contacts.deposed(self.partition, node);
        let unsent = async {
            loop {
                sleep(RETRY_PAUSE).await;
                let leader = self.peers().leader(self.partition);
                let is_moved = leader != known && !matches!(leader, Leader::Unknown);
                let is_late = Instant::now() >= self.deadline && !outgoing.waits_for_client();
                if (is_moved && leader != Leader::At(node)) || is_late {
                    break;
                }
            }
            if !outgoing.withdraw() {
                std::future::pending::<()>().await;
            }
        };
        // Certainly nothing has happened, or nothing that another attempt makes worse.
        let is_unsent = || self.is_read || outgoing.withdraw();
        // What the other node may be about to do is waited for: that does not take long.
        let stopped = async {
            self.peers().stopping().cancelled().await;
            match is_unsent() {
                true => false,
                false if outgoing.give_up() => is_session || self.is_call,
                false => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            biased;
            answer = call(connection, request) => answer,
            () = deposed => {
                let why = "it has lost the leadership".to_owned();
                return if is_unsent() { Sent::Unsent(why) } else { Sent::Lost(why) };
            }
            () = unsent => return Sent::Unsent("it did not take the request in time".to_owned()),
            may_have_happened = stopped => {
                return match may_have_happened {
                    true => Sent::Lost("this node stops".to_owned()),
                    false => Sent::Answered(Cut::Stopping.answer(self.is_call)),
                };
            }
        };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(_) if outgoing.has_failed() => return Sent::Abandoned,
            Err(why) if is_unsent() => return Sent::Unsent(why),
            Err(why) => return Sent::Lost(why),
        };
        // The listener of the other node has refused it, before the service for requests.
        if !answer.headers().contains_key(SERVED_BY) {
            let status = Status::from_header_map(answer.headers());
            let why = status.map_or(answer.status().to_string(), |it| it.message().to_owned());
            return Sent::Unsent(why);
        }
        if answer.status() == StatusCode::MISDIRECTED_REQUEST
            && let Some(leader) = answer.headers().get(NOT_LEADER)
        {
            let leader = leader.to_str().ok().and_then(|leader| leader.parse().ok());
            return Sent::NotLeader(leader);
        }
        // It counts the time in which it gets nothing as the client's. The client has sent what it had to: what lies
        // between the nodes was not read.
        if answer.status() == StatusCode::REQUEST_TIMEOUT && !outgoing.waits_for_client() {
            let why = format!("node {node} did not read the body in time");
            return match is_unsent() {
                true => Sent::Unsent(why),
                false => Sent::Answered(self.unreachable(Some(&why))),
            };
        }
        outgoing.release();
        series::first_byte(begun.elapsed());
        strip(answer.headers_mut());
        let framing = match self.is_call && !self.is_read {
            // The message alone is not yet an answer to a call that changes something.
            true => None,
            false => content_type(answer.headers()).and_then(|kind| Framing::of(&kind)),
        };
        let stalled = CancellationToken::new();
        if framing.is_some() {
            (answer.extensions_mut()).insert(AtStall::Cancel(stalled.clone()));
        }
        let is_of_appends = is_session && !self.is_read;
        let answering = Answering {
            cut: self.cut(
                outgoing,
                node,
                is_of_appends,
                framing.is_some().then_some(stalled),
            ),
            framing,
            is_of_appends,
            incomplete: match (self.is_call, self.is_read) {
                (false, _) => None,
                (true, true) => Some(status::unavailable),
                (true, false) => Some(status::unknown),
            },
        };
        let remote = Some((outgoing.sending(), open));
        let answer = answer.map(|body| Incoming::new(body, answering, remote));
        Sent::Answered(answer.map(axum::body::Body::new))
    }

    /// The request as it is sent to another node; `None` if it is not all there any more.
    fn request(&self, outgoing: &Outgoing, hop: u32) -> Option<http::Request<tonic::body::Body>> {
        let head = outgoing.head();
        let access = head.extensions.get::<Access>()?;
        let client = head.extensions.get::<PeerAddress>();
        let client = client.map_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), |peer| peer.0);
        let wait = self.deadline.saturating_duration_since(Instant::now());
        let mut request = http::Request::new(tonic::body::Body::new(outgoing.begin()?));
        *request.method_mut() = head.method.clone();
        *request.version_mut() = Version::HTTP_2;
        let path = head.uri.path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
        *request.headers_mut() = head.headers.clone();
        strip_request(request.headers_mut());
        let claim = access.principal().claim()?;
        let envelope = Envelope::new(self.peers().node(), claim, client, hop, wait);
        envelope.write(request.headers_mut());
        Some(request)
    }

    /// When an answer that has begun has to end early. A session of appends ends with the leadership of its node;
    /// reads of what is committed go on. What consists of messages (`stalled` is there) ends when this node stops
    /// and when the client takes nothing; any other answer is short.
    fn cut(
        &self,
        outgoing: &Outgoing,
        node: u64,
        is_of_appends: bool,
        stalled: Option<CancellationToken>,
    ) -> BoxFuture<'static, Cut> {
        let lease = outgoing.head().extensions.get::<Access>();
        let lease = lease.map(Access::root_lease);
        let ended = async move {
            match lease.flatten() {
                Some(lease) => lease.ended().await,
                None => std::future::pending().await,
            }
        };
        let stopping = self.peers().stopping().clone();
        let (stopping, stalled) = match stalled {
            Some(stalled) => (stopping, stalled),
            // Never.
            None => (CancellationToken::new(), CancellationToken::new()),
        };
        let deposed = is_of_appends.then(|| self.forwarder.contacts.deposed(self.partition, node));
        let deposed = async move {
            match deposed {
                Some(deposed) => deposed.await,
                None => std::future::pending().await,
            }
        };
        async move {
            tokio::select! {
                error = ended => Cut::NoAccess(error),
                () = stopping.cancelled() => Cut::Stopping,
                () = stalled.cancelled() => Cut::Stalled,
                () = deposed => Cut::Moved,
            }
        }
        .boxed()
    }

    /// The answer to another node that has sent a request to this one, which does not lead.
    fn not_leader(&self) -> Response {
        let leader = match self.peers().leader(self.partition) {
            Leader::At(node) => HeaderValue::from(node),
            Leader::Here | Leader::Unknown => HeaderValue::from_static(""),
        };
        (StatusCode::MISDIRECTED_REQUEST, [(NOT_LEADER, leader)]).into_response()
    }

    /// The answer when no leader has taken the request in time.
    fn unreachable(&self, why: Option<&str>) -> Response {
        series::ended(match why {
            None => Outcome::NoLeader,
            Some(_) => Outcome::Unreachable,
        });
        no_leader(self.is_call, self.partition, why.unwrap_or("none is known"))
    }

    /// The answer when it is not known whether the request has happened.
    fn lost(&self, node: u64, why: &str) -> Response {
        series::ended(Outcome::Lost);
        let why = format!(
            "it is not known whether it happened: node {node}, which leads partition {}, was lost before it \
             answered ({why}); look before it is repeated",
            self.partition
        );
        match self.is_call {
            true => status::unknown(why).into_http(),
            false => ServiceError::Lost(why).into_response(),
        }
    }
}

async fn call(
    connection: Connection,
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<tonic::body::Body>, String> {
    connection.oneshot(request).await.map_err(|error| {
        let error: &dyn std::error::Error = &error;
        let causes = std::iter::successors(Some(error), |error| error.source());
        let causes: Vec<_> = causes.map(ToString::to_string).collect();
        causes.join(": ")
    })
}

/// Whether the answer of this gRPC method may last until the client ends it.
fn lasts(path: &str) -> bool {
    let method = path.rsplit('/').next();
    method.is_some_and(|method| ["Watch", "Replay"].contains(&method))
}

fn not_taken(why: &str) -> String {
    format!("the cluster does not take this node ({why}); ask another node")
}

/// The answer to a request that had no effect, because a partition has no leader that takes it.
fn no_leader(is_call: bool, partition: u64, why: &str) -> Response {
    let why =
        format!("partition {partition} has no leader that takes requests: {why}; nothing happened");
    match is_call {
        true => status::unavailable(why).into_http(),
        false => ServiceError::NoLeader(why).into_response(),
    }
}
