//! One attempt to have a request answered by another node.

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::Body;
use axum::response::Response;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{StatusCode, Uri, Version};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use super::Way;
use crate::answers::AtStall;
use crate::auth::{Access, PeerAddress};
use crate::client::client;
use crate::forward::cut::Cut;
use crate::forward::envelope::Envelope;
use crate::forward::framing::Framing;
use crate::forward::hop_headers::{NOT_LEADER, SERVED_BY, strip, strip_request};
use crate::forward::incoming::{Answering, Incoming};
use crate::forward::lanes::{asks_for_events, lane};
use crate::forward::outgoing::Outgoing;
use crate::forward::peers::{Connection, Leader, RETRY_PAUSE};
use crate::forward::series::{self, Open};
use crate::request_guard::content_type;
use crate::state::status;

/// What became of an attempt.
pub(super) enum Sent {
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
    /// Sends the request to a node.
    pub(super) async fn send(
        &self,
        node: u64,
        outgoing: &Outgoing,
        hop: u32,
        is_session: bool,
    ) -> Sent {
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
        Sent::Answered(answer.map(Body::new))
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
