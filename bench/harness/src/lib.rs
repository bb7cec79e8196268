//! What all benchmarks share.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | the arguments of a benchmark that consists of parts |
//! | [`run`] | one run of a benchmark: its directory, its notes, its parts |
//! | [`figures`] | the figures of all parts, also of earlier runs |
//! | [`page`] | figures, and the page of the documentation that has them |
//! | [`stats`] | medians and percentiles |
//! | [`machine`] | the machine of the measurements, and how busy it is |
//! | [`disk`] | the speed of the disk itself |
//! | [`scratch`] | directories on a real disk |

pub mod args;
pub mod disk;
pub mod figures;
pub mod machine;
pub mod page;
pub mod run;
pub mod scratch;
pub mod stats;

pub use args::PartArgs;
pub use figures::Figures;
pub use page::{Figure, Page, Section};
pub use run::Run;
