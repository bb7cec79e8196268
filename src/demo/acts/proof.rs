//! Reads everything back, and compares it with what was sent.

use super::{Cast, expect_records, missing};
use crate::failure::Failure;
use crate::term::{count, rate, took};

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let total = cast.records.count();
    let stage = &cast.stage;

    let reading = expect_records(cast, total).await?;
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
