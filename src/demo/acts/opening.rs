//! Starts a server, creates a stream, and starts the follower.

use s2_sdk::types::{CreateBasinInput, CreateStreamInput};

use super::Cast;
use crate::demo::follower::Follower;
use crate::failure::Failure;
use crate::term::{bytes, count, took};

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let server = cast.start_server("server-1.log", &[]).await?;
    let pid = server.pid();
    let address = server.address().clone();
    let connection = cast.connect().await?;
    let target = cast.target.clone();
    let asked = connection.asked_stream(&target);
    connection
        .account()
        .create_basin(CreateBasinInput::new(target.basin.clone()))
        .await
        .map_err(|e| asked.request(&e))?;
    let age = cast.server()?.age();
    connection
        .basin(&target.basin)
        .create_stream(CreateStreamInput::new(target.stream.clone()))
        .await
        .map_err(|e| asked.request(&e))?;

    let records = &cast.records;
    let stage = &cast.stage;
    stage.say(format_args!(
        "`esker server`, process {pid}, answers {} after exec. Its data is in",
        took(age)
    ));
    stage.say(format_args!("{}.", cast.data_dir().display()));
    stage.say(format_args!(
        "The stream {target} is new. {} {} wait for it ({}), such as",
        count(records.count()),
        records.what,
        bytes(records.bytes()),
    ));
    if let Some(first) = records.get(0) {
        stage.say(format_args!("  {}", excerpt(first)));
    }
    stage.say("A follower reads along on a connection of its own, and compares each record.");

    cast.follower = Some(Follower::start(target, cast.records.clone(), address));
    Ok(())
}

/// The part of a record that fits on a line.
fn excerpt(record: &[u8]) -> String {
    const WIDTH: usize = 90;
    let text: String = String::from_utf8_lossy(record)
        .chars()
        .map(|c| if c.is_control() { '.' } else { c })
        .collect();
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
