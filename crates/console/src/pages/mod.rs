//! The pages. Each asks the APIs for what it shows, and renders it.
//!
//! | module | what it shows |
//! |---|---|
//! | [`overview`] | health, what a recovery costs, every partition as a ruler |
//! | [`snapshots`], [`snapshot`] | what the repository keeps of a partition; one snapshot and its files |
//! | [`why`], [`prune`] | what keeps an object; what a prune would delete |
//! | [`streams`], [`stream`], [`record`] | basins and streams; one stream and its records; one record |
//! | [`state`], [`key`] | agents, keys and commits of the state store; one key and its versions |
//! | [`cluster`] | nodes and partitions |
//! | [`sign_in`] | the way in and out |

pub mod cluster;
pub mod key;
pub mod overview;
pub mod prune;
pub mod record;
pub mod sign_in;
pub mod snapshot;
pub mod snapshots;
pub mod state;
pub mod stream;
pub mod streams;
pub mod why;
