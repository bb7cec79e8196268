//! The server: the S2 API and the state service over HTTP, configuration, logs and metrics.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | the configuration, where each value came from, its documentation |
//! | [`server`] | the listener: connections, limits, start and graceful stop |
//! | [`api`] | handlers: from requests to calls on a node, and back |
//! | [`admin`] | the admin API: status, partition snapshots |
//! | [`auth`] | who sends a request, and what they may do |
//! | [`identification`] | the layers that find that out |
//! | `forward`, `forwarded` | requests to any node of a cluster; the mark of those that another node has sent |
//! | `client`, `turns` | whose turn a request is where many wait; turns of what reads much |
//! | [`state`] | the state service, over gRPC |
//! | `tls` | certificates of the listeners, handshakes |
//! | [`telemetry`] | logs and metrics |
//! | [`traces`] | traces of requests, for a collector |
//! | `sample_history` | what the node did in the last hour, for people who look at it |
//! | [`front`] | what is served beside the APIs, such as pages for people |
//! | [`usage`] | what is used of the S2 API, for its metrics |
//! | [`errors`] | `docs/reference/errors.md`, from the codes in the source |
//!
//! `esker-node` does everything that a request asks for; this crate decides nothing.

mod activity;
pub mod admin;
mod answers;
pub mod api;
pub mod auth;
mod client;
pub mod config;
mod cors;
pub mod errors;
mod file_poll;
mod forward;
mod forwarded;
pub mod front;
pub mod identification;
mod log_writer;
mod metric_reference;
mod open_files;
mod origins;
mod place;
mod protocol_detect;
mod refusal;
mod repeat_limiter;
mod request_guard;
mod sample_history;
pub mod server;
mod shared_service;
pub mod state;
pub mod telemetry;
mod timestamp;
mod tls;
pub mod traces;
mod turns;
pub mod usage;
mod watchdog;
mod windows;

pub use esker_node::{ReadBudget, give_up_others, panic_is_caught, shorten_time_slice_once};
pub use server::{ServeError, Server};
pub use tls::{CertificateInfo, TlsError};
