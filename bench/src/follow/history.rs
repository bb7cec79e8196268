//! Recoveries by the length of the history, with a snapshot every 10,000 records and without any.

use esker_follow::folds::Latest;
use esker_follow::{External, Follower, S2Endpoint};
use esker_repository::Destination;
use esker_repository::destination::DestinationOptions;

use super::{BASIN, Bench, Operation, Step, config, create, load, step};
use bench_harness::page::{Figure, Section};

/// Keys of the state.
const KEYS: u64 = 1_000;
/// Records after the newest snapshot: the average for this interval.
const TAIL: u64 = 5_000;

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let server = bench.serve("history").await?;
    let stream = create(&server, "orders").await?;
    let directory = bench.run.scratch.join("objects");
    std::fs::create_dir_all(&directory)?;
    let directory = directory.display().to_string();
    let lengths: &[u64] = match bench.run.quick {
        true => &[10_000, 20_000],
        false => &[10_000, 100_000, 1_000_000, 10_000_000],
    };
    let (mut figures, mut with, mut read) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = 0;
    for length in lengths {
        // A follower takes the snapshots meanwhile, as it would have while the history grew.
        load(&stream, next..*length - TAIL, KEYS).await?;
        let endpoint = S2Endpoint::new(config(&server.url())?, BASIN.parse()?, "orders".parse()?)?;
        let place = Destination::open(&directory, &DestinationOptions::default())?;
        let objects = External::new(place.store().clone(), place.prefix().clone());
        let follower = Follower::builder(endpoint, Latest::by("/id")?)
            .external(objects)
            .every_records(10_000)
            .open()
            .await?;
        follower.caught_up().await?;
        follower.snapshot().await?;
        follower.close().await?;
        load(&stream, *length - TAIL..*length, KEYS).await?;
        next = *length;
        let snapshot = Step {
            external: Some(directory.clone()),
            ..step(Operation::Follow, &server, "orders")
        };
        let recovered = bench.median(&snapshot).await?;
        let replayed = bench
            .median(&step(Operation::Follow, &server, "orders"))
            .await?;
        with.push(recovered.seconds);
        read.push(recovered.bytes as f64);
        figures.push(
            Figure::plain(
                format!("{length} records"),
                format!(
                    "{:.3} s, {} KiB read",
                    recovered.seconds,
                    recovered.bytes >> 10
                ),
            )
            .beside(format!(
                "without a snapshot: {:.3} s, {} KiB",
                replayed.seconds,
                replayed.bytes >> 10
            )),
        );
    }
    let last = with.len() - 1;
    let (time, bytes) = (with[last] / with[0], read[last] / read[0]);
    figures.push(
        Figure::plain(
            "longest ÷ shortest",
            format!("{time:.2}x the time, {bytes:.2}x the bytes"),
        )
        .target("flat", time < 1.5 && bytes < 1.1),
    );
    Ok(Section {
        title: "Recovery by the length of the history".to_owned(),
        how: format!(
            "One stream of JSON records of 100 bytes with {KEYS} keys; the fold is the last record of \
             each key; snapshots every 10,000 records into a directory; {TAIL} records came after the \
             newest one. Medians of {} runs.",
            bench.run.runs
        ),
        figures,
        ..Section::default()
    })
}
