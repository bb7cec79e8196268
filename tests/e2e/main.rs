//! End-to-end tests: the real binary, over the network, with the official client and with raw
//! requests.
//!
//! | module | what it shows |
//! |---|---|
//! | [`basins`], [`streams`], [`stream_settings`] | creation, listing, change and deletion of basins and streams |
//! | [`appends`], [`conditions`] | appends in every form; expected sequence numbers, fences, trims |
//! | [`reads`] | every start and every end of a read, in every form |
//! | [`access_tokens`] | who may do what, with access tokens |
//! | [`append_sessions`], [`read_sessions`] | sessions of both kinds, raw and by the official client |
//! | [`read_costs`], [`read_memory`] | what reads cost: system calls, memory |
//! | [`slow_clients`], [`slow_bodies`] | clients that stop reading or sending |
//! | [`compression`], [`errors`] | codings of bodies; what is refused, and how |
//! | [`cors`] | pages of allowed origins |
//! | [`hostile_http`] | smuggled requests, injected headers, floods of frames |
//! | [`tls`] | TLS, certificates that change or end, failed handshakes |
//! | [`encryption`] | records that are encrypted with the key of each request |
//! | [`bad_input`] | every limit and every rule |
//! | [`retention`] | records past their age, empty streams |
//! | [`disk`], [`full_disk`], [`hanging_disk`], [`disk_space`] | a full or hanging disk; space that is freed |
//! | [`lost_disk`], [`read_only_disk`] | a disk that takes no more files, disappears and comes back, or is read-only |
//! | [`runbook`] | the runbook's answers of a disk that is full or hangs |
//! | [`open_files`] | too many open files, while serving |
//! | [`floods`] | appends, tiny requests, connections and followers in great number |
//! | [`traces`] | traces of requests, as a collector receives them |
//! | [`kill_loop`], [`linearizable`] | many kills; one order of events for all answers |
//! | [`membership`] | nodes that lose their log or disk, copies of directories, removed nodes, restores |
//! | [`failover`] | three nodes: requests to any of them, and nodes that are killed |
//! | [`cluster`] | three nodes: each path of the guide, faults of one node, histories |
//! | [`any_node`] | three nodes: requests to those that do not lead what these are about |
//! | [`peer_port`] | the listener for nodes: strangers, secrets, certificates |
//! | [`formats`] | formats of earlier releases |
//! | [`recovery`] | every loss in turn, and the recovery from it |
//! | [`restarts`] | what a start finds, what a stop waits for, and refusals |
//!
//! Every test starts its own servers on free loopback ports, with temporary data directories, and kills no
//! other process.

#![allow(clippy::unwrap_used)]

mod access_tokens;
mod any_node;
mod append_sessions;
mod appends;
mod bad_input;
mod basins;
mod cluster;
mod compression;
mod conditions;
mod cors;
mod disk;
mod disk_space;
mod encryption;
mod errors;
mod failover;
mod floods;
mod foreign_requests;
mod formats;
mod full_disk;
mod hanging_disk;
mod hostile_http;
mod kill_loop;
mod linearizable;
mod locations;
mod lost_disk;
mod membership;
mod metrics;
mod open_files;
mod peer_port;
mod read_costs;
mod read_memory;
mod read_only_disk;
mod read_sessions;
mod reads;
mod recovery;
mod restarts;
mod retention;
mod runbook;
mod slow_bodies;
mod slow_clients;
mod small_disk;
mod stream_settings;
mod streams;
mod tls;
mod traces;
mod usage_metrics;

/// Servers and clients, from the test kit.
use testkit_server as support;
