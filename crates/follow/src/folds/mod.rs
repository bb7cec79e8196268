//! Ready folds, for streams whose records are JSON.
//!
//! | fold | its state |
//! |---|---|
//! | [`Latest`] | the last record of each key |
//! | [`Merge`] | one document, made of all records as merge patches (RFC 7396) |
//! | [`Count`] | how many records each key has |

mod count;
mod key;
mod latest;
mod merge;

pub use count::Count;
pub use key::Pointer;
pub use latest::Latest;
pub use merge::Merge;
