//! Recovery: every loss in turn, and the recovery from it.
//!
//! | module | what it shows |
//! |---|---|
//! | [`lossless`] | losses without loss of data |
//! | [`damaged_blocks`] | damaged blocks of the database, found by a start or a read |
//! | [`running`] | damage that a running server finds, and its restart by itself |
//! | [`lossy`] | losses of data: a new lineage, in which no sequence number is assigned twice |
//! | [`positions`] | the position of a stream and its forks |
//! | [`refusals`] | what a start refuses without changing anything |
//! | [`empty_directories`] | the meaning of an empty data directory |
//! | [`empty_partitions`] | partitions without any copy |
//! | [`runbook`] | what status and health show after each row of the runbook |
//! | [`old_copies`] | older copies that are put back beside newer local snapshots; what is put aside |
//! | [`twins`] | two copies of one node; two losses in a row |
//! | [`kills`] | kills during concurrent work of every kind |
//! | [`any_history`] | random histories and losses, against a model |
//! | [`outages`], [`log_bound`] | a repository that cannot be reached, and the log meanwhile |
//! | [`schedule`] | when snapshots are put |
//! | [`scrubbing`] | damaged objects of the repository, found and repaired |
//! | [`catalog`] | basins, and the streams that need them |
//! | [`stops`] | a stop, and what the start after it shows |
//!
//! | shared module | what it holds |
//! |---|---|
//! | [`target`] | a destination, and a data directory beside it |
//! | [`history`] | a cluster that was killed after some work and some snapshots |
//! | [`losses`] | losses and damage of such a cluster |
//! | [`contents`] | everything that a client can read, before and after |

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
mod old_copies;
mod outages;
pub mod positions;
mod refusals;
pub mod runbook;
mod running;
mod schedule;
mod scrubbing;
mod stops;
mod target;
mod twins;
