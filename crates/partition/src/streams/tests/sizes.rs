//! How many bytes a stream holds.

use super::fixture::*;

/// Metered bytes of records with these bodies.
fn metered(bodies: usize, body: usize) -> u64 {
    (bodies * (8 + body)) as u64
}

fn size(partition: &Fixture) -> u64 {
    let reader = partition.reader();
    reader.metered_size(&partition.stream("s")).unwrap().bytes
}

#[test]
fn the_size_of_a_small_stream_is_exact_with_what_is_trimmed_and_after_forks() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    assert_eq!(size(&partition), 0);
    for _ in 0..3 {
        let batch = bodies(stream, 2000, ["four", "char", "last"]);
        partition.append(batch).unwrap();
    }
    assert_eq!(size(&partition), metered(9, 4));
    let trimmed = append(stream, 2000, vec![trim(5), rec("four")]);
    partition.append(trimmed).unwrap();
    let command = size(&partition) - metered(5, 4);
    assert!((1..64).contains(&command), "the command counts as well");
    partition.fork(5);
    assert_eq!(size(&partition), metered(5, 4) + command);
    partition
        .append(bodies(stream, 2000, ["after the fork"]))
        .unwrap();
    assert_eq!(size(&partition), metered(5, 4) + command + metered(1, 14));
}

#[test]
fn the_size_of_a_large_stream_of_equal_records_is_exact_and_little_is_read() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let body: &'static str = "x".repeat(1000).leak();
    let batches = 40;
    for _ in 0..batches {
        let batch = bodies(stream, 2000, [body; 50]);
        partition.append(batch).unwrap();
    }
    let reader = partition.reader();
    let measured = reader.metered_size(&partition.stream("s")).unwrap();
    assert_eq!(measured.bytes, metered(batches * 50, 1000));
    assert!(measured.read < measured.bytes / 4, "{measured:?}");
}
