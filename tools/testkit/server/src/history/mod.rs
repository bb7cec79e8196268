//! The history of a stream: what was sent and answered, and the check of the stream against it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`record_id`] | the name of a record |
//! | [`record`] | bodies of records that contain their identity |
//! | [`checker`] | the history of a stream as its clients know it, and the check |
//! | [`violation`] | the faults that the check finds |
//!
//! The soak of the bench and the end-to-end tests use it.

pub mod checker;
pub mod record;
pub mod record_id;
pub mod violation;
