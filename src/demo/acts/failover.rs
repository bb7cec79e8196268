//! Three nodes on this machine. The one that leads is killed in mid-append, and another one takes over.
//!
//! The client sends to a node that stays. When its session is lost, it looks where the stream ends, and goes on from
//! there: each batch has the condition that its records get their own numbers, so none can be there twice.

use std::path::Path;
use std::time::{Duration, Instant};

use s2_sdk::types::{CreateBasinInput, CreateStreamInput};

use super::{Cast, expect_records_at, missing};
use crate::cluster_cmd::formation::{formed, start};
use crate::cluster_cmd::trial_node::{TrialNode, find_taken};
use crate::demo::appender::{self, STEADY};
use crate::demo::follower::Follower;
use crate::demo::records::Records;
use crate::failure::Failure;
use crate::remote::Remote;
use crate::stream_cmd::connection::Connection;
use crate::stream_cmd::target::StreamTarget;
use crate::term::{count, rate, took};

const NODES: u16 = 3;
/// One partition of streams: what a node leads and what it costs does not depend on their number.
const SETTINGS: [&str; 1] = ["partitions=1"];
/// Base ports that are tried, in the part of the ports that systems give to no outgoing connection.
const PORTS: std::ops::Range<u32> = 20_000..32_000;
/// Most tries to find free ports: another program may take one in between.
const TRIES: u32 = 3;
/// How long appends may stand still: an election takes one or two seconds, and longer on a machine that is busy.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait before the stream is looked at again, while nobody leads.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How often the follower is looked at when all is appended.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    cast.records = Records::flights().into();
    let dir = cast.scratch.join("cluster");
    std::fs::create_dir_all(&dir).map_err(|e| super::io("making", &dir, &e))?;
    let began = Instant::now();
    let leader = form(cast, &dir).await?;
    let formed_after = began.elapsed();
    let other = |step: usize| &cast.nodes[(leader + step) % cast.nodes.len()];
    let (client, reader) = (connect(other(1)).await?, other(2));
    create(&client, cast).await?;

    let (total, stage) = (cast.records.count(), &cast.stage);
    stage.say(
        "Three nodes on this machine have all records: an append is acknowledged when two of them",
    );
    stage.say(format_args!(
        "have it on disk. They vote after {}, and {}, process {}, leads.",
        took(formed_after),
        cast.nodes[leader].name,
        cast.nodes[leader].pid
    ));
    stage.say(format_args!(
        "The client sends to {}, a follower reads from {}: both pass it on to {}. When {} records",
        other(1).name,
        reader.name,
        cast.nodes[leader].name,
        count(total / 2)
    ));
    stage.say(format_args!(
        "are acknowledged, {} gets SIGKILL. It does not come back.",
        cast.nodes[leader].name
    ));
    let reading = reader.url().parse();
    let reading = reading.map_err(|e| Failure::wrong("demo", e))?;
    let follower = Follower::start_by_way_of(cast.target.clone(), cast.records.clone(), reading);
    cast.follower = Some(follower);
    let mut work = Appending {
        client: &client,
        target: &cast.target,
        records: &cast.records,
        killed: None,
        last_ack: Instant::now(),
        still: Duration::ZERO,
        unanswered: (0, 0),
    };
    let bar = cast.stage.bar("appended", total);
    let killing = &mut cast.nodes[leader];
    let appended = work
        .run(
            |acknowledged| bar.set_position(acknowledged),
            || killing.kill(),
        )
        .await;
    bar.finish_and_clear();
    let elapsed = appended?;
    let (still, (found, unanswered)) = (work.still, work.unanswered);

    let stage = &cast.stage;
    stage.figure(
        "appends stood still",
        took(still),
        "until one of the other two led, and had acknowledged the next one",
    );
    stage.figure(
        "under way",
        count(unanswered),
        format_args!(
            "{} of them are there: only the answer was lost",
            count(found)
        ),
    );
    stage.figure(
        "appended",
        count(total),
        format_args!("in {}, {}", took(elapsed), rate(total, elapsed)),
    );
    let read = expect_records_at(&client, cast, total).await?;
    cast.stage.holds(format_args!(
        "{} records read back from two nodes of three: in order, each once, byte for byte ({})",
        count(total),
        took(read)
    ));
    finish_following(cast).await?;
    cast.stage.holds(format_args!(
        "{} records seen by the follower, across the change of leaders: the same, in order, each once",
        count(total)
    ));
    cast.end_nodes().await?;
    // If this fails, the directory is removed with the scratch directory.
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}

/// Starts the nodes, and waits until they vote. Returns which of them leads the partition of streams.
async fn form(cast: &mut Cast, dir: &Path) -> Result<usize, Failure> {
    for attempt in 0..TRIES {
        let dir = dir.join(attempt.to_string());
        std::fs::create_dir_all(&dir).map_err(|e| super::io("making", &dir, &e))?;
        let base_port = free_base_port(attempt)?;
        let forming = async {
            start(&mut cast.nodes, &dir, NODES, base_port, &SETTINGS)?;
            formed(&mut cast.nodes, |_| {}).await
        };
        match forming.await {
            Ok(view) => {
                let streams = view.partitions.iter().find(|of| of.partition == 1);
                let leader = streams.and_then(|of| of.leader_name.as_deref());
                let leader = cast
                    .nodes
                    .iter()
                    .position(|it| Some(it.name.as_str()) == leader);
                return leader.ok_or_else(|| missing("leader"));
            }
            // Another program took a port after it was found free.
            Err(failure) if failure.message.contains("error [listen]") => cast.end_nodes().await?,
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::wrong(
        "demo",
        format!("no free ports were found in {TRIES} tries"),
    ))
}

/// A port from which on all that the nodes need are free.
fn free_base_port(attempt: u32) -> Result<u16, Failure> {
    // Demos that run at the same time begin at different ones.
    let first = std::process::id().wrapping_mul(211) + attempt * 1000;
    let span = PORTS.end - PORTS.start;
    let mut bases = (0..span / 10).map(|step| PORTS.start + first.wrapping_add(step * 10) % span);
    let free = bases.find_map(|base| {
        let base = u16::try_from(base).ok()?;
        find_taken(base, NODES).is_ok().then_some(base)
    });
    free.ok_or_else(|| Failure::wrong("demo", "there are no free ports for three nodes"))
}

async fn connect(node: &TrialNode) -> Result<Connection, Failure> {
    let address = node.url().parse();
    let address = address.map_err(|e| Failure::wrong("demo", e))?;
    Connection::open(&Remote::open(address)).await
}

async fn create(client: &Connection, cast: &Cast) -> Result<(), Failure> {
    let asked = client.asked_stream(&cast.target);
    let basin = CreateBasinInput::new(cast.target.basin.clone());
    let made = client.account().create_basin(basin).await;
    made.map_err(|e| asked.request(&e))?;
    let stream = CreateStreamInput::new(cast.target.stream.clone());
    let made = client.basin(&cast.target.basin).create_stream(stream).await;
    made.map_err(|e| asked.request(&e))?;
    Ok(())
}

/// The append across the kill.
struct Appending<'a> {
    client: &'a Connection,
    target: &'a StreamTarget,
    records: &'a Records,
    /// When the leader was killed.
    killed: Option<Instant>,
    last_ack: Instant,
    /// The longest time between two acknowledgements since the kill.
    still: Duration,
    /// Records whose answer was lost: those that are there, and all.
    unanswered: (u64, u64),
}

impl Appending<'_> {
    /// Appends everything, and calls `kill` when half of it is acknowledged. Returns how long it took.
    async fn run(
        &mut self,
        mut progress: impl FnMut(u64),
        mut kill: impl FnMut(),
    ) -> Result<Duration, Failure> {
        let total = self.records.count();
        let began = Instant::now();
        let mut next = 0;
        loop {
            let stream = self.client.session(self.target);
            let (killed, last_ack, still) = (&mut self.killed, &mut self.last_ack, &mut self.still);
            let acknowledged = |acknowledged| {
                let now = Instant::now();
                if killed.is_some() {
                    *still = (*still).max(now - *last_ack);
                } else if acknowledged >= total / 2 {
                    kill();
                    *killed = Some(now);
                }
                *last_ack = now;
                progress(acknowledged);
                Ok(true)
            };
            let appended =
                appender::append(&stream, self.records, next..total, STEADY, acknowledged).await?;
            let Some(error) = appended.broke else {
                return Ok(began.elapsed());
            };
            let failure = self.client.asked_stream(self.target).append_session(&error);
            let Some(killed) = self.killed else {
                return Err(failure);
            };
            next = self.tail(killed).await?;
            if !(appended.acknowledged..=appended.sent).contains(&next) {
                return Err(Failure::wrong(
                    "demo",
                    format!(
                        "the stream ends at {next}, although {} records were acknowledged and {} were sent",
                        appended.acknowledged, appended.sent
                    ),
                ));
            }
            self.unanswered.0 += next - appended.acknowledged;
            self.unanswered.1 += appended.sent - appended.acknowledged;
        }
    }

    /// Where the stream ends, once somebody leads.
    async fn tail(&self, killed: Instant) -> Result<u64, Failure> {
        loop {
            match self.client.stream(self.target).check_tail().await {
                Ok(tail) => return Ok(tail.seq_num),
                Err(error) if killed.elapsed() >= RESUME_TIMEOUT => {
                    let failure = self.client.asked_stream(self.target).read(&error);
                    return Err(Failure::wrong(
                        "demo",
                        format!(
                            "nobody leads {} s after the leader was killed: {}",
                            RESUME_TIMEOUT.as_secs(),
                            failure.message
                        ),
                    ));
                }
                Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
            }
        }
    }
}

/// Waits until the follower has seen everything. Its session is lost with the leader, and it goes on when it is sent
/// to its node again.
async fn finish_following(cast: &mut Cast) -> Result<(), Failure> {
    let follower = cast.follower.take().ok_or_else(|| missing("follower"))?;
    let began = Instant::now();
    while follower.seen() < cast.records.count() && began.elapsed() < RESUME_TIMEOUT {
        follower.come_back();
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    follower.finish().await
}
