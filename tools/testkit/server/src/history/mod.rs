//! What was sent to a stream and answered, and whether the stream agrees with it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`record_id`] | the name of a record |
//! | [`record`] | bodies of records that say who sent them |
//! | [`checker`] | the history of a stream as its clients know it, and the check |
//! | [`violation`] | what the check finds |
//!
//! The soak of the bench and the end-to-end tests use it.

pub mod checker;
pub mod record;
pub mod record_id;
pub mod violation;
