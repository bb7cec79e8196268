//! Lists the streams of a basin over all partitions.
//!
//! Names are spread evenly over the partitions, so of a page of a list each has its part. A short page of each is
//! read first, and the next one only of a partition whose names are all taken: a list reads somewhat more than
//! it returns, and not as much of each partition as it returns in all.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use s2_common::encryption::EncryptionAlgorithm;

/// A stream in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamListing {
    /// Its name.
    pub name: String,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Its cipher.
    pub cipher: Option<EncryptionAlgorithm>,
}

/// The names of a partition that are read and not taken yet.
struct Source {
    page: VecDeque<StreamListing>,
    /// Whether there may be more after them.
    has_more: bool,
}

/// How many names of each of so many partitions are read at a time for a list of `limit`.
fn page_of(limit: usize, partitions: usize) -> usize {
    let share = limit / partitions.max(1);
    // Three standard deviations more than the mean, which is where most lists end.
    (share + 3 * share.isqrt() + 4).min(limit)
}

/// The first `limit` streams of all partitions in the order of their names, and whether there are more. `read`
/// returns at most so many of a partition that come after a name, in order; the empty name is before all.
///
/// # Errors
///
/// That of a read.
pub(crate) fn merge<E>(
    partitions: usize,
    start_after: &str,
    limit: usize,
    mut read: impl FnMut(usize, &str, usize) -> Result<Vec<StreamListing>, E>,
) -> Result<(Vec<StreamListing>, bool), E> {
    // One more shows whether there are more.
    let wanted = limit.saturating_add(1);
    let page = page_of(wanted, partitions);
    let mut sources = Vec::with_capacity(partitions);
    let mut next = BinaryHeap::with_capacity(partitions);
    for at in 0..partitions {
        let source = Source::of(read(at, start_after, page)?, page);
        if let Some(first) = source.page.front() {
            next.push(Reverse((first.name.clone(), at)));
        }
        sources.push(source);
    }
    let mut merged = Vec::new();
    while merged.len() < wanted
        && let Some(Reverse((_, at))) = next.pop()
    {
        let source = &mut sources[at];
        let Some(taken) = source.page.pop_front() else {
            continue;
        };
        if source.page.is_empty() && source.has_more && merged.len() + 1 < wanted {
            *source = Source::of(read(at, &taken.name, page)?, page);
        }
        if let Some(first) = source.page.front() {
            next.push(Reverse((first.name.clone(), at)));
        }
        merged.push(taken);
    }
    let has_more = merged.len() > limit;
    merged.truncate(limit);
    Ok((merged, has_more))
}

impl Source {
    fn of(read: Vec<StreamListing>, page: usize) -> Source {
        Source {
            has_more: read.len() == page,
            page: read.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn listing(name: &str) -> StreamListing {
        StreamListing {
            name: name.to_owned(),
            created_ms: 1,
            cipher: None,
        }
    }

    /// A generator that needs no crate; its seed is in the message of each assertion.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            ((self.0 >> 33) as usize) % end
        }
    }

    /// What the plain way gives: everything of all partitions, sorted.
    fn plain(
        partitions: &[BTreeSet<String>],
        after: &str,
        limit: usize,
    ) -> (Vec<StreamListing>, bool) {
        let names: BTreeSet<&String> = partitions.iter().flatten().collect();
        let mut names = names.into_iter().filter(|name| name.as_str() > after);
        let listed = names.by_ref().take(limit).map(|name| listing(name));
        let listed: Vec<_> = listed.collect();
        (listed, names.next().is_some())
    }

    fn merged(
        partitions: &[BTreeSet<String>],
        after: &str,
        limit: usize,
        read: &mut usize,
    ) -> (Vec<StreamListing>, bool) {
        let list = |at: usize, after: &str, most: usize| {
            let names = partitions[at].iter().filter(|name| name.as_str() > after);
            let page: Vec<_> = names.take(most).map(|name| listing(name)).collect();
            *read += page.len();
            Ok::<_, ()>(page)
        };
        merge(partitions.len(), after, limit, list).unwrap()
    }

    #[test]
    fn pages_that_are_merged_give_what_a_sorted_list_of_everything_does() {
        for seed in 0..300 {
            let mut random = Random(seed);
            let count = 1 + random.below(9);
            let mut partitions = vec![BTreeSet::new(); count];
            // Sometimes evenly, sometimes nearly all in one partition.
            let is_skewed = random.below(2) == 0;
            for number in 0..random.below(120) {
                let at = match is_skewed && random.below(10) > 0 {
                    true => 0,
                    false => random.below(count),
                };
                partitions[at].insert(format!("{:x}", number * 7919 % 251));
            }
            // A name is in one partition.
            for at in 1..count {
                let (before, others) = partitions.split_at_mut(at);
                others[0].retain(|name| !before.iter().any(|one| one.contains(name)));
            }
            for limit in [0, 1, 2, 3, 10, 50, 1000] {
                for after in ["", "0", "3f", "a", "zz"] {
                    let found = merged(&partitions, after, limit, &mut 0);
                    let expected = plain(&partitions, after, limit);
                    assert_eq!(
                        found, expected,
                        "seed {seed}, limit {limit}, after {after:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_list_reads_a_small_part_of_what_many_partitions_have() {
        let mut partitions = vec![BTreeSet::new(); 100];
        let mut random = Random(1);
        for number in 0..100_000 {
            let at = random.below(100);
            partitions[at].insert(format!("stream-{number:06}"));
        }
        let mut read = 0;
        let (listed, has_more) = merged(&partitions, "", 1000, &mut read);
        assert_eq!((listed.len(), has_more), (1000, true));
        assert!(read < 5_000, "{read} names were read for 1,000");
    }

    #[test]
    fn what_cannot_be_read_ends_the_list() {
        let failing = |at: usize, _: &str, _: usize| match at {
            2 => Err("unreadable"),
            _ => Ok(vec![listing("a")]),
        };
        assert_eq!(merge(3, "", 10, failing), Err("unreadable"));
    }
}
