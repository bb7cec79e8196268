//! Recovery: every loss in turn, and the way back from it.
//!
//! | module | what it shows |
//! |---|---|
//! | [`lossless`] | losses that cost nothing |
//! | [`damaged_blocks`] | damaged blocks of the database, wherever they are met |
//! | [`running`] | damage that a running server meets, and its restart by itself |
//! | [`lossy`] | losses that cost something: a new lineage, in which no sequence number is assigned twice |
//! | [`positions`] | what a stream says of its forks |
//! | [`refusals`] | what a start refuses, and that it changes nothing then |
//! | [`empty_directories`] | what an empty data directory means |
//! | [`empty_partitions`] | partitions of which no copy is left |
//! | [`runbook`] | what status and health show after each row of the runbook |
//! | [`twins`] | two copies of one node; one loss after the other |
//! | [`kills`] | kills amid all of that |
//! | [`any_history`] | all of that in any order, against a model |
//! | [`outages`], [`log_bound`] | a repository out of reach, and the log meanwhile |
//! | [`schedule`] | when snapshots are put |
//! | [`catalog`] | basins, and the streams that need them |
//! | [`stops`] | a stop, and what the start after it shows |
//!
//! | what they share | |
//! |---|---|
//! | [`target`] | a destination, and a data directory beside it |
//! | [`history`] | a cluster that was killed after some work and some snapshots |
//! | [`losses`] | what is lost of it |
//! | [`contents`] | all that a client can read, before and after |

mod any_history;
mod catalog;
pub mod contents;
mod damaged_blocks;
mod empty_directories;
mod empty_partitions;
mod history;
mod kills;
mod log_bound;
mod losses;
mod lossless;
mod lossy;
mod outages;
pub mod positions;
mod refusals;
pub mod runbook;
mod running;
mod schedule;
mod stops;
mod target;
mod twins;
