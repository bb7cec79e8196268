//! The promises of a stream partition, by topic.
//!
//! Every test drives a [`StreamPartition`](super::StreamPartition) as its apply thread does, on a real
//! database in a directory of its own, and reads it as readers do: see [`fixture`].

mod appending;
#[cfg(target_os = "linux")]
pub(crate) mod bytes_read;
mod checkpoints;
mod commands;
mod digests;
mod dropping;
mod encryption;
mod expiring;
pub(crate) mod fixture;
mod followed_trims;
mod following;
mod forks;
mod histories;
mod installing;
mod limits;
mod listing;
mod model;
mod opening;
mod provisioning;
mod reclaiming;
mod recovery;
mod segments;
mod sessions;
mod sizes;
mod starting;
mod trimming;
