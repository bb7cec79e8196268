//! Starts the server again on the same directory, looks at what survived, and appends the rest.

use super::{Cast, Crash, missing, whole};
use crate::demo::appender::{self, STEADY};
use crate::failure::Failure;
use crate::term::{count, rate, took};

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let Crash { acknowledged, sent } = *cast.crash.as_ref().ok_or_else(|| missing("crash"))?;
    cast.start_server("server-2.log", &[]).await?;
    let connection = cast.connect().await?;
    let tail = connection
        .stream(&cast.target)
        .check_tail()
        .await
        .map_err(|e| connection.asked_stream(&cast.target).read(&e))?
        .seq_num;
    let server = cast.server()?;
    let recovered = server.age();

    let stage = &cast.stage;
    stage.say(format_args!(
        "The same program on the same directory, now as process {}.",
        server.pid()
    ));
    let replayed = match server.told().replayed {
        Some(entries) => format!("after exec; {} log entries replayed", count(entries)),
        None => "after exec".to_owned(),
    };
    stage.figure("first answer", took(recovered), replayed);
    stage.figure("tail", count(tail), "where the stream ends now");
    if tail < acknowledged {
        return Err(Failure::wrong(
            "demo",
            format!(
                "the stream ends at {tail}, although records up to {acknowledged} were \
                 acknowledged: {} acknowledged records are lost",
                acknowledged - tail
            ),
        ));
    }
    if tail > sent {
        return Err(Failure::wrong(
            "demo",
            format!("the stream ends at {tail}, although only {sent} records were sent"),
        ));
    }
    stage.figure("acknowledged", count(acknowledged), "all of them there");
    stage.figure(
        "under way",
        count(tail - acknowledged),
        format_args!(
            "of {} there as well: only the answer was lost",
            count(sent - acknowledged)
        ),
    );
    stage.say(format_args!(
        "The append continues with record {}, the follower where it was.",
        count(tail)
    ));

    let follower = cast.follower.as_ref().ok_or_else(|| missing("follower"))?;
    follower.go_to(server.address().clone());
    let total = cast.records.count();
    let appending = stage.bar("appended", total);
    let following = stage.bar("followed", total);
    let stream = connection.session(&cast.target);
    let appended = appender::append(
        &stream,
        &cast.records,
        tail..total,
        STEADY,
        |acknowledged| {
            appending.set_position(acknowledged);
            following.set_position(follower.seen());
            Ok(true)
        },
    )
    .await;
    appending.finish_and_clear();
    following.finish_and_clear();
    let appended = appended?;
    whole(&connection, cast, &appended)?;
    stage.figure(
        "appended",
        count(total - tail),
        format_args!(
            "in {}, {}",
            took(appended.took),
            rate(total - tail, appended.took)
        ),
    );
    Ok(())
}
