//! The subcommand `soak`: kills the server, starts it again, and checks every promise, in an endless loop.
//!
//! A *round*: appenders and followers work on several streams; at a random moment the server is killed with
//! SIGKILL; it is started again on the same data directory, and sometimes killed once more during its
//! recovery; then every stream is read completely and checked by the
//! [checker](testkit_server::history::checker). The streams live for a *generation* of several rounds, so
//! that records survive several kills, and are then deleted and created again, so that a soak can run for
//! days.
//!
//! A kill does not show missing syncs: the operating system keeps what the process has written, synced or
//! not. They are found only by a loss of power, or with a file system that discards unsynced data.
//!
//! Roles: [`appender`] and [`follower`] make the load, [`subject`] is a stream and what its clients know of
//! it.

mod appender;
mod follower;
mod subject;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use s2_sdk::{
    S2, S2Basin,
    types::{CreateStreamInput, DeleteStreamInput},
};
use testkit_server::history::checker::Verdict;
use tokio::task::JoinSet;

use self::{
    appender::{Appender, Stop},
    subject::{Subject, Usage},
};
use crate::{
    client::sdk,
    process::{Program, Server},
    streams::esker_program,
};
use bench_harness::scratch::Scratch;

/// The basin of the soak.
const BASIN: &str = "soak-basin";

/// Rounds in a generation. Bounds the memory of a check and the records that it reads.
const GENERATION_ROUNDS: u64 = 10;

/// Time limit of one start, recovery included.
const READY_AT_MOST: Duration = Duration::from_secs(60);

/// Time limit of a request. A kill ends it at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit for appenders and followers to notice a kill, after which they are ended.
const END_AT_MOST: Duration = Duration::from_secs(3);

/// In one of this many rounds the server is killed again during its recovery.
const KILL_IN_RECOVERY: u32 = 4;

/// Longest time before that second kill.
const RECOVERY_KILL_AT_MOST: Duration = Duration::from_millis(400);

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// End after so many rounds. Default: go on until Ctrl-C.
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Decides what is random: when the server is killed and what is written.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Sets of streams: each has two plain ones, one with conditions, one with a fence.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..100))]
    sets: u32,
    /// The longest that a round lets the server live, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 2500, value_parser = clap::value_parser!(u64).range(50..600_000))]
    longest: u64,
    /// Where the server's directory is made. Default: the cache directory.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Soaks until the rounds are done or a promise is found broken; then the exit code is 1 and the
/// data directory is kept.
///
/// # Errors
///
/// If the server cannot be started, or does not come back after a kill.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let program = esker_program(args.esker.clone())?;
    let seed = args.seed.unwrap_or_else(|| rand::rng().next_u64() >> 16);
    println!("{} ({})", program.version()?, program.path.display());
    println!(
        "seed {seed}; repeat with --seed {seed} --sets {} --longest {}. The seed decides when the \
         server is killed and what is written; how far it is by then, the machine decides.",
        args.sets, args.longest
    );
    let scratch = Scratch::new(args.scratch.as_deref())?;
    let mut soak = Soak::start(args, program, seed, &scratch).await?;
    let outcome = soak.rounds().await;
    if matches!(outcome, Ok(true)) {
        return Ok(ExitCode::SUCCESS);
    }
    drop(soak);
    println!("the data directory is kept in {}", scratch.keep().display());
    outcome?;
    Ok(ExitCode::from(1))
}

struct Soak {
    args: Args,
    program: Program,
    seed: u64,
    data: PathBuf,
    port: u16,
    server: Server,
    /// Streams of this generation.
    subjects: Vec<Arc<Subject>>,
    began: Instant,
    done: Totals,
}

/// The totals of a soak so far.
#[derive(Default)]
struct Totals {
    rounds: u64,
    kills: u64,
    records: u64,
    landed: u64,
    vanished: u64,
    slowest_start: Duration,
}

impl Soak {
    async fn start(
        args: Args,
        program: Program,
        seed: u64,
        scratch: &Scratch,
    ) -> anyhow::Result<Self> {
        let data = scratch.path().join("data");
        let port = testkit::ports::free_port()?;
        let mut server = program.start(&data, port)?;
        server.ready(READY_AT_MOST).await?;
        sdk::create_basin(&sdk::client(&server.url(), REQUEST_TIMEOUT)?, BASIN).await?;
        Ok(Self {
            args,
            program,
            seed,
            data,
            port,
            server,
            subjects: Vec::new(),
            began: Instant::now(),
            done: Totals::default(),
        })
    }

    /// Runs all rounds; false as soon as a promise is found broken.
    async fn rounds(&mut self) -> anyhow::Result<bool> {
        while self
            .args
            .rounds
            .is_none_or(|rounds| self.done.rounds < rounds)
        {
            if self.done.rounds.is_multiple_of(GENERATION_ROUNDS) {
                self.new_generation().await?;
            }
            if !self.round().await? {
                return Ok(false);
            }
            self.done.rounds += 1;
        }
        Ok(true)
    }

    /// Deletes the streams of the previous generation and creates new ones.
    async fn new_generation(&mut self) -> anyhow::Result<()> {
        let basin = self.basin()?;
        for old in self.subjects.drain(..) {
            let name = old.name.clone();
            basin
                .delete_stream(DeleteStreamInput::new(name))
                .await
                .with_context(|| format!("cannot delete the stream {}", old.name))?;
        }
        let generation = self.done.rounds / GENERATION_ROUNDS;
        let usages = [
            Usage::Plain,
            Usage::Plain,
            Usage::Conditional,
            Usage::Fenced,
        ];
        for (number, usage) in (0..self.args.sets).flat_map(|_| usages).enumerate() {
            let name = format!("soak-{generation}-{number}").parse()?;
            // Different from the tag of any other stream of this soak, and most likely of other soaks.
            let tag = (self.seed ^ (generation << 8) ^ number as u64) as u32;
            let subject = Subject::new(name, tag, usage);
            basin
                .create_stream(CreateStreamInput::new(subject.name.clone()))
                .await
                .with_context(|| format!("cannot create the stream {}", subject.name))?;
            self.subjects.push(Arc::new(subject));
        }
        Ok(())
    }

    async fn round(&mut self) -> anyhow::Result<bool> {
        let number = self.done.rounds;
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(number));
        // Squared, so that short lives are frequent: much happens right after a start.
        let fraction = random.random::<f64>();
        let live = Duration::from_millis((fraction * fraction * self.args.longest as f64) as u64);

        let stop = Stop::new(AtomicBool::new(false));
        let mut actors = self.spawn_actors(&mut random, &stop)?;
        tokio::time::sleep(live).await;
        if let Some(end) = self.server.ended()? {
            println!(
                "round {number}: the server ended by itself: {end}{}",
                self.server.log()
            );
            return Ok(false);
        }
        self.restart(&mut random, &stop).await?;
        let started_in = self.server.spawned().elapsed();
        self.done.slowest_start = self.done.slowest_start.max(started_in);
        finish(&mut actors).await?;

        let before = Instant::now();
        let (faults, verdict) = self.check().await?;
        println!(
            "round {number}: lived {:.2} s, started in {:.3} s, checked {} records in {:.2} s; of \
             the appends without answer {} were there, {} were not{}",
            live.as_secs_f64(),
            started_in.as_secs_f64(),
            verdict.records,
            before.elapsed().as_secs_f64(),
            verdict.landed,
            verdict.vanished,
            if faults.is_empty() {
                ""
            } else {
                "; BROKEN PROMISES:"
            }
        );
        for fault in &faults {
            println!("  {fault}");
        }
        self.done.landed += verdict.landed;
        self.done.vanished += verdict.vanished;
        self.done.records += verdict.records;
        Ok(faults.is_empty())
    }

    fn spawn_actors(
        &self,
        random: &mut StdRng,
        stop: &Stop,
    ) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
        let mut actors = JoinSet::new();
        for subject in &self.subjects {
            let mut appender = || -> anyhow::Result<Appender> {
                // Each appender has its own client, so that they do not share a connection.
                let stream = self.basin()?.stream(subject.name.clone());
                let seed = random.next_u64();
                Ok(Appender::new(subject.clone(), stream, seed, stop.clone()))
            };
            match subject.usage {
                Usage::Plain => {
                    actors.spawn(appender()?.plain());
                    actors.spawn(appender()?.plain());
                    actors.spawn(appender()?.sessions());
                }
                Usage::Conditional => {
                    actors.spawn(appender()?.conditional());
                }
                Usage::Fenced => {
                    actors.spawn(appender()?.fenced());
                    actors.spawn(appender()?.rival());
                }
            }
            // One follower from the first record on, one from somewhere within the stream.
            let known = subject.history.lock().acked_records();
            for start in [0, random.random_range(0..=known)] {
                let stream = self.basin()?.stream(subject.name.clone());
                let (subject, stop) = (subject.clone(), stop.clone());
                actors.spawn(follower::follow(subject, stream, start, stop));
            }
        }
        Ok(actors)
    }

    /// Kills the server, starts it again and waits until it is healthy.
    async fn restart(&mut self, random: &mut StdRng, stop: &Stop) -> anyhow::Result<()> {
        let kill_again = random.random_ratio(1, KILL_IN_RECOVERY);
        let kill_after = random.random_range(Duration::ZERO..RECOVERY_KILL_AT_MOST);
        self.kill(stop)?;
        if kill_again {
            tokio::time::sleep(kill_after).await;
            self.kill(stop)?;
        }
        self.server.ready(READY_AT_MOST).await
    }

    /// Replaces the server by a new one on the same directory, by way of SIGKILL.
    fn kill(&mut self, stop: &Stop) -> anyhow::Result<()> {
        self.server.kill();
        // From here on no appender starts an append: a round checks one life of the server.
        stop.store(true, Ordering::Relaxed);
        self.done.kills += 1;
        self.server = self.program.start(&self.data, self.port)?;
        Ok(())
    }

    /// Reads and checks every stream. Returns descriptions of what is wrong, and the sums.
    async fn check(&self) -> anyhow::Result<(Vec<String>, Verdict)> {
        let basin = self.basin()?;
        let mut faults = Vec::new();
        let mut sum = Verdict::default();
        for subject in &self.subjects {
            let stream = basin.stream(subject.name.clone());
            let read = follower::read_all(subject, &stream).await;
            let (contents, tail) =
                read.with_context(|| format!("cannot read {} after the restart", subject.name))?;
            let verdict = subject.history.lock().check(&contents, tail);
            for violation in &verdict.violations {
                faults.push(format!(
                    "{} ({:?}): {violation}",
                    subject.name, subject.usage
                ));
            }
            if verdict.violation_count > verdict.violations.len() {
                let more = verdict.violation_count - verdict.violations.len();
                faults.push(format!("{}: and {more} more", subject.name));
            }
            for answer in subject.wrong_answers.lock().drain(..) {
                faults.push(format!("{} ({:?}): {answer}", subject.name, subject.usage));
            }
            sum.records += verdict.records;
            sum.landed += verdict.landed;
            sum.vanished += verdict.vanished;
        }
        Ok((faults, sum))
    }

    fn basin(&self) -> anyhow::Result<S2Basin> {
        let client: S2 = sdk::client(&self.server.url(), REQUEST_TIMEOUT)?;
        Ok(client.basin(BASIN.parse()?))
    }
}

/// Prints the totals, also when Ctrl-C ends the soak.
impl Drop for Soak {
    fn drop(&mut self) {
        let Totals {
            rounds,
            kills,
            records,
            landed,
            vanished,
            slowest_start,
        } = &self.done;
        println!(
            "{rounds} rounds, {kills} kills in {:.0} s; {records} records checked; of the appends \
             without answer {landed} were there, {vanished} were not; slowest start {:.3} s",
            self.began.elapsed().as_secs_f64(),
            slowest_start.as_secs_f64()
        );
    }
}

/// Waits until appenders and followers have noticed the kill, ends those that have not, and returns an error
/// of the soak itself.
async fn finish(actors: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + END_AT_MOST;
    while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, actors.join_next()).await {
        ended.context("an appender or follower panicked")??;
    }
    actors.shutdown().await;
    Ok(())
}
