//! The state service, over gRPC: from messages to calls on the node's state store, and back.
//!
//! | module | what it holds |
//! |---|---|
//! | [`statehouse`] | `statehouse.v1.StatehouseService`, for clients of Statehouse |
//! | [`service`] | `esker.state.v1.StateService`: compare-and-set, reads as of a commit, replay, watching |
//! | [`snapshots`] | its snapshots: export, import, verification |
//! | [`convert`] | values and events, from the store's form into messages |
//! | [`pages`] | pages of a scan |
//! | [`permission`] | the state store, for those whose token permits it |
//! | [`raw`] | messages that are written as bytes, and the methods that answer with them |
//! | [`blocking`] | runs calls that wait for a disk |
//! | [`status`] | errors, their codes and their details |
//! | [`layer`] | the layer around every call: counting, and the refusal of what is too large |
//!
//! Both services are on the main listener, and on an address of their own when `state.listen` is set.
//! They share transactions.
//!
//! Bounds: a request has at most [`MAX_REQUEST`] bytes, an answer [`MAX_ANSWER`]. Replays and exports are
//! sent as the client takes them. `answers` counts what answers hold.

mod blocking;
mod convert;
pub(crate) mod layer;
mod pages;
mod permission;
mod raw;
mod service;
mod snapshots;
mod statehouse;
pub mod status;

use axum::routing::any_service;
use axum::{Router, middleware};
use esker_node::StateStore;
use esker_proto::state::v1::state_service_server::{SERVICE_NAME as STATE, StateServiceServer};
use esker_proto::statehouse::v1::statehouse_service_server::{
    SERVICE_NAME as STATEHOUSE, StatehouseServiceServer,
};

pub(crate) use snapshots::check_value;
pub use status::CODES;

use crate::answers::Answers;
pub use crate::answers::MAX_ANSWER;
use crate::auth::Guarded;
use crate::shared_service::ShareLayer;
use crate::turns::Turns;

/// Most bytes of a request. A commit is at most one record, 1 MiB of JSON; as a message it is several
/// times larger.
pub const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Turns of what waits for a disk, of both services on all listeners. Clones share them.
#[derive(Clone)]
pub(crate) struct StateTurns {
    /// Of reads of single keys that are not in memory.
    keys: Turns,
    /// Of lists of JSON snapshots.
    snapshots: Turns,
}

impl Default for StateTurns {
    fn default() -> StateTurns {
        StateTurns {
            keys: Turns::of_keys(),
            snapshots: Turns::of_snapshots(),
        }
    }
}

/// What both services share.
#[derive(Clone)]
struct Calls {
    store: Guarded<StateStore>,
    answers: Answers,
    turns: StateTurns,
}

/// Routes of both services.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(
    store: &Guarded<StateStore>,
    answers: &Answers,
    turns: &StateTurns,
) -> Router<S> {
    let calls = Calls {
        store: store.clone(),
        answers: answers.clone(),
        turns: turns.clone(),
    };
    let scans = raw::router(&calls);
    let statehouse = StatehouseServiceServer::new(calls.clone())
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    let state = StateServiceServer::new(calls)
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    Router::new()
        .route(&all_of(STATEHOUSE), any_service(statehouse))
        .route(&all_of(STATE), any_service(state))
        .merge(scans)
        .route_layer((
            middleware::from_fn_with_state(answers.clone(), layer::watched),
            ShareLayer,
        ))
}

fn all_of(service: &str) -> String {
    format!("/{service}/{{method}}")
}
