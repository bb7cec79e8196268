//! Histories of streams and of the state store: what was sent and answered, and the checks against them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`record_id`] | the name of a record |
//! | [`record`] | bodies of records that contain their identity |
//! | [`checker`] | the history of a stream as its clients know it, and the check |
//! | [`violation`] | the faults that the check finds |
//! | [`linearizability`] | whether one order of events explains all answers of a stream |
//! | [`commits`] | the same for a state store |
//! | [`moments`] | when things took effect whose order is known |
//!
//! The soak of the bench and the end-to-end tests use it.

pub mod checker;
pub mod commits;
pub mod linearizability;
pub mod moments;
pub mod record;
pub mod record_id;
pub mod violation;
