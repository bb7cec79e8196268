//! Ready folds, for streams whose records are JSON.
//!
//! | fold | its state |
//! |---|---|
//! | [`Latest`] | the last record of each key |
//! | [`Merge`] | one document, made of all records as merge patches (RFC 7396) |
//! | [`Count`] | how many records each key has |
//!
//! [`Pointer::key`] defines what a key is. Different values have different keys.

mod count;
mod json;
mod key;
mod latest;
mod merge;

pub use count::Count;
pub use json::Json;
pub use key::Pointer;
pub use latest::Latest;
pub use merge::Merge;
