//! Repeated kill -9 in the middle of work: every acknowledged record is there afterwards, once, in order.
//!
//! Each round starts the server, runs writers and followers on three streams, and kills the server at a
//! random moment, sometimes during its start. Then the streams are read completely and compared with every
//! answer that clients got. The checker is that of the soak ([`testkit_server::history`]); its own tests show
//! that it finds each kind of fault. `ESKER_KILL_ROUNDS` is the number of rounds; `make soak-recovery` runs hundreds.

pub mod workload;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::types::BasinConfig;
use testkit::seeds;

use crate::support::sdk;
use crate::support::{Server, Setup};
use workload::{Stop, Streams, follow};

/// Rounds, unless `ESKER_KILL_ROUNDS` has another number: two sets of streams.
const ROUNDS: u64 = 20;
/// Rounds after which new streams are used, because each check reads whole streams.
const ROUNDS_PER_STREAM: u64 = 10;
/// Fewest acknowledged records on the last streams; with fewer, the test shows nothing.
const ENOUGH: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_number_of_kills_everything_acknowledged_is_there_once_and_in_order() {
    let rounds = seeds::number("ESKER_KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = seeds::one(1, "--test e2e kill_loop");
    let mut rng = StdRng::seed_from_u64(seed);
    let setup = Setup::default()
        // Periodic work happens in each round.
        .set("log.flush-after=64KiB")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=1MiB")
        .set("limits.follower-buffer=64KiB");
    let mut server = setup.start_fresh().await;
    let config = BasinConfig::new()
        .with_create_stream_on_append(true)
        .with_create_stream_on_read(true);
    sdk::basin_with(&server.sdk(), "test-basin", config).await;
    let mut streams = Streams::new(0, seed);
    let began = Instant::now();
    let mut round = 0;
    // On a busy machine more rounds are needed.
    while round < rounds || (streams.acked() <= ENOUGH && round < 10 * rounds) {
        let context = format!("seed {seed}, round {round}");
        if round % ROUNDS_PER_STREAM == 0 && round < rounds {
            streams = Streams::new(round / ROUNDS_PER_STREAM, seed ^ round);
        }
        let stop = Stop::default();
        let writers = streams.start(round, &stop, || server.sdk());
        let followers: Vec<_> = streams
            .subjects()
            .into_iter()
            .flat_map(|subject| [(subject, 0), (subject, u64::MAX)])
            .map(|(subject, from)| tokio::spawn(follow(subject.clone(), server.sdk(), from)))
            .collect();

        let moment = rng.random_range(20..500);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.kill();
        streams.collect(writers).await;
        for follower in followers {
            follower.await.unwrap();
        }
        // A start may be killed, too.
        while rng.random_ratio(1, 4) {
            let moment = Duration::from_millis(rng.random_range(0..40));
            setup.start_and_kill(server.data_dir(), moment).await;
        }
        server.restart(&setup).await;
        for subject in streams.subjects() {
            subject.check(&server.sdk(), &context).await;
        }
        round += 1;
    }
    let acked = streams.acked();
    assert!(acked > ENOUGH, "too little was going on: {acked}");
    println!("{round} kills in {:?}, seed {seed}", began.elapsed());
    last_restart_keeps(&mut server, &setup, &streams).await;
}

/// A regular stop at the end loses nothing either.
async fn last_restart_keeps(server: &mut Server, setup: &Setup, streams: &Streams) {
    server.stop().await;
    server.restart(setup).await;
    for subject in streams.subjects() {
        subject.check(&server.sdk(), "after the last stop").await;
    }
}
