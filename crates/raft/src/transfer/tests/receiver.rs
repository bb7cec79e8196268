//! The receiving end, against a scripted sender and disk.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const CHUNK: u32 = 10;

fn config() -> ReceiverConfig {
    ReceiverConfig {
        chunk_bytes: CHUNK,
        window_bytes: 4 * u64::from(CHUNK),
        chunk_deadline_ticks: 3,
        progress_deadline_ticks: 50,
        retry_ticks: 5,
    }
}

/// A receiver and its disk.
struct Fixture {
    receiver: Receiver,
    disk: Vec<Vec<u8>>,
    /// Requested and not answered.
    requested: Vec<Fetch>,
    /// The disk is full.
    full: bool,
    done: Option<Result<(), EndReason>>,
}

impl Fixture {
    fn new(sizes: &[usize]) -> Fixture {
        Fixture::held(sizes, &[])
    }

    fn held(sizes: &[usize], held: &[Held]) -> Fixture {
        let manifest = manifest(sizes);
        let there = |n: usize| match held.get(n) {
            Some(Held::Whole) => content(n, sizes[n]),
            Some(Held::Prefix(prefix)) => content(n, *prefix as usize),
            None => Vec::new(),
        };
        let mut fixture = Fixture {
            receiver: Receiver::new(config(), SOURCE, manifest, held),
            disk: (0..sizes.len()).map(there).collect(),
            requested: Vec::new(),
            full: false,
            done: None,
        };
        fixture.step(ReceiverEvent::Start);
        fixture
    }

    fn step(&mut self, event: ReceiverEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.receiver.step(event) {
                match action {
                    ReceiverAction::Fetch(fetch) => self.requested.push(fetch),
                    ReceiverAction::Write { .. } if self.full => {
                        events.push(ReceiverEvent::WriteFailed);
                    }
                    ReceiverAction::Write {
                        file,
                        offset,
                        bytes,
                    } => {
                        let file = &mut self.disk[file as usize];
                        file.truncate(offset as usize);
                        assert_eq!(file.len() as u64, offset, "a hole");
                        file.extend(bytes.concat());
                        events.push(ReceiverEvent::Written);
                    }
                    ReceiverAction::Verify { file, checksum } => {
                        let good = Checksum::of(&self.disk[file as usize]) == checksum;
                        events.push(ReceiverEvent::Verified { file, good });
                    }
                    ReceiverAction::Complete => self.done = Some(Ok(())),
                    ReceiverAction::Failed(reason) => self.done = Some(Err(reason)),
                }
            }
        }
    }

    fn answer(&mut self, fetch: Fetch) {
        self.step(ReceiverEvent::Chunk(chunk_of(fetch)));
    }

    fn answer_all(&mut self) {
        while !self.requested.is_empty() {
            let fetch = self.requested.remove(0);
            self.answer(fetch);
        }
    }

    fn ticks(&mut self, count: u64) {
        for _ in 0..count {
            self.step(ReceiverEvent::Tick);
        }
    }

    fn assert_whole(&self, sizes: &[usize]) {
        assert_eq!(self.done, Some(Ok(())));
        for (n, size) in sizes.iter().enumerate() {
            assert_eq!(self.disk[n], content(n, *size), "file {n}");
        }
    }
}

#[test]
fn everything_is_fetched_once_with_no_more_in_flight_than_the_window() {
    let sizes = [95, 0, 10, 1, 40];
    let mut fixture = Fixture::new(&sizes);
    let mut most = 0;
    while let Some(fetch) = fixture.requested.first().copied() {
        most = most.max(fixture.requested.iter().map(|f| f.length).sum());
        fixture.requested.remove(0);
        fixture.answer(fetch);
    }
    assert_eq!(most, 4 * CHUNK);
    fixture.assert_whole(&sizes);
    let counts = fixture.receiver.counts();
    assert_eq!((counts.bytes_fetched, counts.unwanted), (146, 0));
}

#[test]
fn files_that_are_there_by_hash_and_parts_that_are_there_are_not_fetched() {
    let sizes = [50, 50, 50, 50];
    let held = [
        Held::Whole,
        Held::Prefix(25),
        Held::Prefix(50),
        Held::Prefix(0),
    ];
    let mut fixture = Fixture::held(&sizes, &held);
    fixture.answer_all();
    fixture.assert_whole(&sizes);
    assert_eq!(fixture.receiver.counts().bytes_fetched, 75);
    assert_eq!(fixture.receiver.counts().bytes_held, 125);

    let nothing_to_do = Fixture::held(&[5, 5], &[Held::Whole, Held::Whole]);
    nothing_to_do.assert_whole(&[5, 5]);
    assert!(nothing_to_do.requested.is_empty());
}

#[test]
fn damage_to_a_part_is_found_when_the_file_is_complete_and_the_file_is_fetched_again() {
    let sizes = [50, 30];
    let mut fixture = Fixture::held(&sizes, &[Held::Prefix(25), Held::Prefix(30)]);
    fixture.disk[0][3] ^= 1;
    // Longer than it can be: not what it should be.
    fixture.answer_all();
    fixture.assert_whole(&sizes);
    assert_eq!(fixture.receiver.counts().corrupt, 1);
}

#[test]
fn a_chunk_that_does_not_arrive_is_requested_again_with_growing_deadlines() {
    let mut fixture = Fixture::new(&[10]);
    let mut requested_at = Vec::new();
    for tick in 0..45 {
        if !fixture.requested.is_empty() {
            assert_eq!(fixture.requested.len(), 1);
            fixture.requested.clear();
            requested_at.push(tick);
        }
        fixture.ticks(1);
    }
    assert_eq!(requested_at, [0, 3, 9, 21]);
    fixture.ticks(10);
    assert_eq!(fixture.done, Some(Err(EndReason::Silent)));
}

#[test]
fn a_large_file_may_take_as_long_as_it_likes() {
    let mut fixture = Fixture::new(&[1000]);
    for _ in 0..100 {
        fixture.ticks(40);
        let fetch = fixture.requested[0];
        fixture.answer(fetch);
        fixture.requested.retain(|f| f.offset > fetch.offset);
    }
    fixture.assert_whole(&[1000]);
}

#[test]
fn a_corrupt_chunk_is_requested_again_at_once_and_fails_the_transfer_in_the_end() {
    let corrupt = |fetch: Fetch| {
        let mut chunk = chunk_of(fetch);
        chunk.checksum = Checksum(1);
        ReceiverEvent::Chunk(chunk)
    };
    let mut fixture = Fixture::new(&[10]);
    for _ in 0..3 {
        let fetch = fixture.requested.pop().unwrap();
        fixture.step(corrupt(fetch));
    }
    // One that is too short is corrupt as well.
    let fetch = fixture.requested.pop().unwrap();
    fixture.step(ReceiverEvent::Chunk(chunk_of(Fetch { length: 9, ..fetch })));
    fixture.answer_all();
    fixture.assert_whole(&[10]);
    assert_eq!(fixture.receiver.counts().corrupt, 4);

    let mut fixture = Fixture::new(&[10]);
    while let Some(fetch) = fixture.requested.pop() {
        fixture.step(corrupt(fetch));
    }
    assert_eq!(fixture.done, Some(Err(EndReason::Corrupt)));
}

#[test]
fn a_full_disk_is_waited_for_and_nothing_is_fetched_twice() {
    let sizes = [200];
    let mut fixture = Fixture::new(&sizes);
    let fetch = fixture.requested.remove(0);
    fixture.full = true;
    fixture.answer(fetch);
    assert!(fixture.receiver.waits_for_space());
    fixture.answer_all();
    fixture.ticks(1000);
    assert_eq!(
        (fixture.done, fixture.requested.len()),
        (None, 0),
        "it waits, for as long as it takes"
    );
    fixture.full = false;
    fixture.ticks(5);
    fixture.answer_all();
    fixture.assert_whole(&sizes);
    assert_eq!(fixture.receiver.counts().bytes_fetched, 200);
}

#[test]
fn a_busy_sender_gets_the_request_again_later_and_its_end_ends_the_transfer() {
    let ended = |reason| {
        let checkpoint = CheckpointId([9; 16]);
        ReceiverEvent::Ended(Ended { checkpoint, reason })
    };
    let mut fixture = Fixture::new(&[20]);
    fixture.requested.clear();
    fixture.step(ended(EndReason::Busy));
    fixture.ticks(1);
    assert!(fixture.requested.is_empty());
    fixture.ticks(3);
    fixture.answer_all();
    fixture.assert_whole(&[20]);

    for reason in [
        EndReason::Vanished,
        EndReason::Unreadable,
        EndReason::Refused,
    ] {
        let mut fixture = Fixture::new(&[20]);
        fixture.step(ended(reason));
        assert_eq!(fixture.done, Some(Err(reason)));
        fixture.requested.clear();
        fixture.ticks(100);
        assert!(fixture.requested.is_empty(), "it is over");
    }
}

#[test]
fn whatever_the_network_does_the_files_become_whole_and_a_break_costs_at_most_the_window() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(1..6);
        let sizes: Vec<usize> = (0..count).map(|_| rng.random_range(0..120)).collect();
        let mut fixture = Fixture::new(&sizes);
        let (mut fetched, mut breaks) = (0, 0);
        for _ in 0..2000 {
            if fixture.done.is_some() {
                break;
            }
            match rng.random_range(0..20) {
                0..3 => fixture.ticks(1),
                3 => fixture.full = !fixture.full,
                4 => {
                    // A break: what is there is there.
                    fetched += fixture.receiver.counts().bytes_fetched;
                    breaks += 1;
                    let (held, disk) = (fixture.receiver.held(), fixture.disk.clone());
                    fixture = Fixture::held(&sizes, &held);
                    fixture.disk = disk;
                }
                _ if fixture.requested.is_empty() => fixture.ticks(1),
                at => {
                    let n = rng.random_range(0..fixture.requested.len());
                    let fetch = fixture.requested[n];
                    match at {
                        5 => {}
                        6 => {
                            fixture.requested.swap_remove(n);
                            continue;
                        }
                        _ => {
                            fixture.requested.swap_remove(n);
                        }
                    }
                    fixture.answer(fetch);
                }
            }
        }
        fixture.full = false;
        for _ in 0..200 {
            fixture.answer_all();
            fixture.ticks(1);
        }
        fixture.assert_whole(&sizes);
        fetched += fixture.receiver.counts().bytes_fetched;
        let all = sizes.iter().sum::<usize>() as u64;
        assert!(
            fetched <= all + breaks * 4 * u64::from(CHUNK),
            "seed {seed}: {fetched} of {all} in {breaks} breaks"
        );
    }
}
