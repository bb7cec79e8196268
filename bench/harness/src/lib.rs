//! What all benchmarks share.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | the arguments of a benchmark that consists of parts |
//! | [`run`] | one run of it: where it works, its notes, its parts |
//! | [`page`] | figures, and the page of the documentation that they stand on |
//! | [`stats`] | medians and percentiles |
//! | [`machine`] | what the measurements ran on, and how busy it is |
//! | [`disk`] | what the disk itself can do |
//! | [`scratch`] | directories on a real disk |

pub mod args;
pub mod disk;
pub mod machine;
pub mod page;
pub mod run;
pub mod scratch;
pub mod stats;

pub use args::PartArgs;
pub use page::{Figure, Page, Section};
pub use run::Run;
