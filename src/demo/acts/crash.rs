//! Appends, and kills the server when half of the records are acknowledged.

use super::{Cast, Crash, missing};
use crate::demo::appender::{self, STEADY};
use crate::demo::records::{BATCH, WINDOW};
use crate::failure::Failure;
use crate::term::{count, rate, took};

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let connection = cast.connect().await?;
    let stream = connection.session(&cast.target);
    let total = cast.records.count();
    let half = total / 2;
    let stage = &cast.stage;
    stage.say(format_args!(
        "Records go out in batches of {BATCH}, {WINDOW} of them under way at a time. When {} are",
        count(half)
    ));
    stage.say("acknowledged, the server gets SIGKILL: no warning, no time to save anything.");

    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    let follower = cast.follower.as_ref().ok_or_else(|| missing("follower"))?;
    let appending = stage.bar("appended", total);
    let following = stage.bar("followed", total);
    let mut killed_at = None;
    let appended = appender::append(&stream, &cast.records, 0..total, STEADY, |acknowledged| {
        if acknowledged >= half && killed_at.is_none() {
            server.kill()?;
            killed_at = Some(acknowledged);
        }
        appending.set_position(acknowledged);
        following.set_position(follower.seen());
        Ok(true)
    })
    .await;
    appending.finish_and_clear();
    following.finish_and_clear();
    let appended = appended?;
    if killed_at.is_none() || appended.broke.is_none() || appended.sent == total {
        let why = appended
            .broke
            .map_or_else(|| "every record was acknowledged".into(), |e| e.to_string());
        return Err(Failure::wrong(
            "demo",
            format!(
                "the kill did not come in the middle of the append: {} acknowledged, {} sent; {why}",
                appended.acknowledged, appended.sent
            ),
        ));
    }
    let pid = server.pid();
    server.gone().await?;

    stage.say(format_args!(
        "Process {pid} is gone after {}, at {}. What the client knows:",
        took(appended.took),
        rate(appended.acknowledged, appended.took)
    ));
    stage.figure(
        "acknowledged",
        count(appended.acknowledged),
        "durable, says the server",
    );
    stage.figure(
        "under way",
        count(appended.sent - appended.acknowledged),
        "sent, but not answered: they are there or not",
    );
    stage.figure("not sent", count(total - appended.sent), "not there");
    stage.figure(
        "seen by the follower",
        count(follower.seen()),
        "durable, or it would not have been shown",
    );
    cast.crash = Some(Crash {
        acknowledged: appended.acknowledged,
        sent: appended.sent,
    });
    Ok(())
}
