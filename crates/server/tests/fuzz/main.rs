//! Fuzzing, in process: a real node behind the real routes, fed with what no client should send.
//!
//! | module | what it holds |
//! |---|---|
//! | [`run`] | seeds, lanes, the time it may take, and how a failure is told |
//! | [`world`] | the node, the routes, and how a request gets there |
//! | [`model`] | what a stream must hold, and what the API says of an append |
//! | [`generate`], [`mutate`] | good input, and what becomes of it |
//! | [`wire`] | frames, bodies and codings, written and read independently of the server |
//! | [`reading`] | reading a stream back, in every form that the API has |
//! | [`framing`], [`appends`], [`names`], [`bodies`], [`queries`], [`round_trips`] | the kinds of cases |
//! | [`bombs`] | what a small body may cost in memory |
//!
//! A case makes a request from its seed, works out from the bytes alone what the server has to
//! answer and to keep, and compares. Everything that was acknowledged is read back, and nothing else
//! may be there.
//!
//! By default each test runs a few fixed seeds. With `ESKER_SEED_SECONDS` they take fresh ones for
//! about that long in all (`scripts/fuzz`). A failure names its seed and the command that repeats it.

#![allow(clippy::unwrap_used)]

mod appends;
mod bodies;
mod bombs;
mod framing;
mod generate;
mod model;
mod mutate;
mod names;
mod queries;
mod reading;
mod round_trips;
mod run;
mod wire;
mod world;

use run::Kind;

#[test]
fn an_append_session_takes_whole_batches_up_to_the_first_fault_and_says_which() {
    run::fuzz(Kind::Framing);
}

#[test]
fn an_append_keeps_what_its_body_says_or_nothing() {
    run::fuzz(Kind::Appends);
}

#[test]
fn any_name_is_kept_as_it_is_or_refused() {
    run::fuzz(Kind::Names);
}

#[test]
fn a_json_body_is_taken_or_refused_and_nothing_else_happens() {
    run::fuzz(Kind::Bodies);
}

#[test]
fn a_read_gives_what_its_query_asks_for_or_a_refusal() {
    run::fuzz(Kind::Queries);
}

#[test]
fn what_was_appended_reads_the_same_in_every_form() {
    run::fuzz(Kind::RoundTrips);
}

#[test]
fn a_body_takes_no_more_memory_than_a_frame_however_large_it_unpacks() {
    bombs::stay_small();
}
