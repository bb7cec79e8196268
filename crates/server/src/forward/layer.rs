//! The layer that answers a request here, or sends it to the node that does.

mod attempt;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use esker_node::{Client, FairPermit};
use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, sleep, timeout_at};
use tower::{Service as _, ServiceExt as _};

use super::Forwarder;
use super::envelope::MAX_HOPS;
use super::hop_headers::NOT_LEADER;
use super::outgoing::Outgoing;
use super::peers::{Leader, Peers, RETRY_PAUSE, read_index_by};
use super::replica;
use super::series::{self, Outcome};
use super::targets::{Kind, Place, Unplaced, place};
use crate::api::ServiceError;
use crate::client::client;
use crate::forwarded::{Forwarded, GivenBack, is_forwarded, is_not_proposed};
use crate::request_guard::{is_grpc, is_session};
use crate::state::status;
use attempt::Sent;

/// Answers a request, here or at the node that leads what it is about.
pub(crate) async fn forward(
    State(forwarder): State<Forwarder>,
    request: Request,
    next: Next,
) -> Response {
    let is_call = is_grpc(request.uri().path());
    let peers = &*forwarder.peers;
    let wait = wait_of(&forwarder, &request);
    let (place, request) = match place(peers, request, wait, &forwarder.bodies).await {
        Ok(placed) => placed,
        Err(Unplaced::Slow) => return ServiceError::SlowBody.into_response(),
        Err(Unplaced::NoMemory) => return ServiceError::BodiesFull.into_response(),
        Err(Unplaced::Catalog(why)) => return no_leader(is_call, 0, &why),
    };
    let deadline = Instant::now() + wait;
    let sender = client(request.extensions());
    let to_leader = |partition, kind: Kind| Way {
        forwarder: &forwarder,
        client: sender,
        partition,
        is_read: kind == Kind::Read,
        is_append: kind == Kind::Append,
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
            match is_own && read.may_be_answered(peers, sender, by).await {
                true => {
                    series::read_here();
                    let answer = next.run(request).await;
                    replica::answered(&forwarder.contacts, read.partition, answer)
                }
                false => {
                    to_leader(read.partition, Kind::Read)
                        .go(request, next)
                        .await
                }
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
        Place::Leader { partition, kind } => to_leader(partition, kind).go(request, next).await,
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
    /// Who sends it.
    client: Client,
    partition: u64,
    is_read: bool,
    is_append: bool,
    is_call: bool,
    deadline: Instant,
}

impl Way<'_> {
    fn peers(&self) -> &Arc<dyn Peers> {
        &self.forwarder.peers
    }

    async fn go(mut self, request: Request, mut next: Next) -> Response {
        let known = self.peers().leader(self.partition);
        let leads = known == Leader::Here && self.may_answer().await;
        let is_session = is_session(request.headers());
        // After this node has refused to propose it.
        let may_be_sent_again = !self.is_read && !self.is_call && !is_session;
        if leads && !may_be_sent_again {
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
        let mut hop = 1;
        let mut hint = leads.then_some(Leader::Here);
        let mut is_confirmed = leads;
        let mut why = None;
        let mut waiting = None;
        let outgoing = if leads && self.is_append {
            // Nothing of it is kept here: the handler gives back what it has not proposed.
            // The handler's address is without the prefix that its routes are nested below.
            let uri = request.uri().clone();
            let mut answer = run(&mut next, request).await;
            let Some(GivenBack(mut request)) = answer.extensions_mut().remove() else {
                return answer;
            };
            *request.uri_mut() = uri;
            self.note_refused_here(&mut why);
            let memory = self.forwarder.bodies.kept(self.client);
            let Some(outgoing) = Outgoing::given_back(request, memory) else {
                return ServiceError::BodiesFull.into_response();
            };
            if !self.pause(&mut waiting).await {
                return self.unreachable(why.as_deref());
            }
            hint = None;
            outgoing
        } else {
            let memory = self.forwarder.bodies.kept(self.client);
            Outgoing::new(request, memory)
        };
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
                        if !may_be_sent_again {
                            return match outgoing.into_request() {
                                Some(request) => self.answer_here(request, next).await,
                                None => self.unreachable(why.as_deref()),
                            };
                        }
                        let Some(request) = outgoing.request_here() else {
                            return self.unreachable(why.as_deref());
                        };
                        let answer = run(&mut next, request).await;
                        if !is_not_proposed(answer.extensions()) {
                            return answer;
                        }
                        self.note_refused_here(&mut why);
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
            if !self.pause(&mut waiting).await {
                return self.unreachable(why.as_deref());
            }
        }
    }

    /// This node has refused to propose the request, because it does not lead any more.
    fn note_refused_here(&mut self, why: &mut Option<String>) {
        if why.is_none() {
            // However long it was here, the wait for the new leader begins now.
            let deadline = Instant::now() + self.forwarder.leader_timeout;
            self.deadline = self.deadline.max(deadline);
        }
        *why = Some("this node has given the leadership away".to_owned());
    }

    /// A pause before another attempt, and whether there is one: the request needs a place among those that wait, and
    /// time that is left.
    async fn pause(&self, place: &mut Option<FairPermit>) -> bool {
        if place.is_none() {
            *place = self.forwarder.waiting.try_take(self.client, 1).ok();
        }
        if place.is_none() || Instant::now() + RETRY_PAUSE >= self.deadline {
            return false;
        }
        sleep(RETRY_PAUSE).await;
        true
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

/// The answer of this node, after which it may be asked again.
async fn run(next: &mut Next, request: Request) -> Response {
    match next.ready().await {
        Ok(next) => match next.call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        },
        Err(never) => match never {},
    }
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
