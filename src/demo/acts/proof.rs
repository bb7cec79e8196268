//! Reads everything back, and compares it with what was sent.

use std::time::Instant;

use futures::StreamExt as _;
use s2_sdk::types::{ReadInput, ReadStop};

use super::{Cast, missing};
use crate::demo::follower::check;
use crate::exit::Failure;
use crate::term::{count, rate, took};

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let connection = cast.connect().await?;
    let asked = connection.asked_stream(&cast.target);
    let total = cast.records.count();
    let stage = &cast.stage;

    let began = Instant::now();
    // From the first record to the end, without waiting for more.
    let everything = ReadInput::new().with_stop(ReadStop::new().with_wait(0));
    let mut session = connection
        .session(&cast.target)
        .read_session(everything, Default::default())
        .await
        .map_err(|e| asked.read_session(&e))?;
    let mut next = 0;
    while let Some(batch) = session.next().await {
        for record in &batch.map_err(|e| asked.read_session(&e))?.records {
            check(&cast.records, next, record)
                .map_err(|problem| Failure::wrong("demo", format!("reading back {problem}")))?;
            next += 1;
        }
    }
    if next != total {
        return Err(Failure::wrong(
            "demo",
            format!("of {total} records only {next} can be read back"),
        ));
    }
    let reading = began.elapsed();
    stage.holds(format_args!(
        "{} records read back: in order, each once, byte for byte ({}, {})",
        count(total),
        took(reading),
        rate(total, reading)
    ));

    let follower = cast.follower.take().ok_or_else(|| missing("follower"))?;
    follower.finish().await?;
    stage.holds(format_args!(
        "{} records seen by the follower, across the kill: the same, in order, each once",
        count(total)
    ));
    Ok(())
}
