//! End-to-end tests: the real binary, over the network, with the official client and with raw
//! requests.
//!
//! | module | what it shows |
//! |---|---|
//! | [`basins`], [`streams`], [`stream_settings`] | what exists, and how it is made, changed and deleted |
//! | [`appends`], [`conditions`] | appends in every form; expected sequence numbers, fences, trims |
//! | [`reads`] | every start and every end of a read, in every form |
//! | [`append_sessions`], [`read_sessions`] | sessions of both kinds, raw and by the official client |
//! | [`slow_clients`] | clients that stop |
//! | [`compression`], [`errors`] | codings of bodies; what is refused, and how |
//! | [`bad_input`] | every limit and every rule |
//! | [`retention`] | records past their age, empty streams |
//! | [`disk`], [`disk_space`] | a full disk; space that comes back |
//! | [`runbook`] | what the runbook shows of disks that are full or hang |
//! | [`open_files`] | too many open files, while serving |
//! | [`kill_loop`], [`linearizable`] | many kills; one order of events for all answers |
//! | [`formats`] | every format that was ever promised |
//! | [`recovery`] | every loss in turn, and the way back from it |
//! | [`restarts`] | what a start finds, what a stop waits for, and what is refused |
//!
//! Every test starts servers of its own on free loopback ports, with data directories that go with
//! it, and kills no process but these.

#![allow(clippy::unwrap_used)]

mod append_sessions;
mod appends;
mod bad_input;
mod basins;
mod compression;
mod conditions;
mod disk;
mod disk_space;
mod errors;
mod foreign_requests;
mod formats;
mod full_disk;
mod hanging_disk;
mod kill_loop;
mod linearizable;
mod metrics;
mod open_files;
mod read_memory;
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

/// Servers and clients, from the test kit.
use testkit_server as support;
