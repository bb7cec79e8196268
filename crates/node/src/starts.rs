//! Which starts of a data directory come after which: by that, a node and a copy of its data directory are told apart.
//!
//! A start of a node in a cluster has an id: random digits, the number of the start, and a mark. It is written to the data
//! directory before it is shown to anybody, and the next start has it among those before it. So whatever start of a node the
//! cluster knows, a start of the same directory is it or comes after it. A copy that was made before that start does not
//! have it, and neither does a backup that was restored: they lack what the node has acknowledged and voted since.
//!
//! Ids without the mark are of earlier builds, which did not always write them down. They prove nothing.

/// The last digits of the id of a start that was written down before it was shown.
const WRITTEN: u32 = 0x6573_6b72;

/// A start, as other nodes see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub id: u128,
    /// Those before it, newest first, as far as they are remembered.
    pub earlier: Vec<u128>,
}

/// The id of a start that comes after others: the number of the newest one that was written down, and one more.
pub(crate) fn draw(earlier: impl IntoIterator<Item = u128>) -> u128 {
    let newest = earlier.into_iter().filter_map(number).max();
    of(newest.unwrap_or(0).saturating_add(1))
}

/// The id of a start of which it is not known how many were before it, because the file that had them is damaged: more
/// seconds since the epoch have passed than there can have been starts.
pub(crate) fn draw_without_earlier(seconds_since_epoch: u64) -> u128 {
    of(u32::try_from(seconds_since_epoch).unwrap_or(u32::MAX))
}

fn of(number: u32) -> u128 {
    let random: u64 = rand::random();
    u128::from(random) << 64 | u128::from(number) << 32 | u128::from(WRITTEN)
}

/// The number of a start, if it was written down before it was shown.
fn number(start: u128) -> Option<u32> {
    let is_written = start as u32 == WRITTEN;
    is_written.then_some((start >> 32) as u32)
}

/// Whether a start may be one of the data directory that `known` was a start of, and is it or comes after it. `earlier` are
/// the last starts before it, as far as it shows them.
pub(crate) fn follows(start: u128, earlier: &[u128], known: u128) -> bool {
    let (Some(own), Some(of_known)) = (number(start), number(known)) else {
        return true;
    };
    if start == known || earlier.contains(&known) {
        return true;
    }
    // It has another start in the place of the known one, or none. Where all that it shows came later, it may have had
    // more starts than it can show.
    let shows = |one: &u128| number(*one).is_some_and(|one| one <= of_known);
    own > of_known && !earlier.iter().any(shows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory: all its starts, newest first.
    #[derive(Clone, Default)]
    struct Starts(Vec<u128>);

    impl Starts {
        fn start(&mut self) -> u128 {
            let start = draw(self.0.iter().copied());
            self.0.insert(0, start);
            start
        }

        fn follows(&self, known: u128) -> bool {
            let shown = self.0[1..].iter().copied().take(32);
            follows(self.0[0], &shown.collect::<Vec<_>>(), known)
        }
    }

    #[test]
    fn each_start_of_a_directory_follows_those_before_it() {
        let mut node = Starts::default();
        let all: Vec<u128> = (0..100).map(|_| node.start()).collect();
        for known in all {
            assert!(node.follows(known), "also where it cannot show all of them");
        }
    }

    #[test]
    fn a_copy_follows_no_start_that_the_node_has_had_since_however_often_it_is_started() {
        let mut node = Starts::default();
        node.start();
        let mut copy = node.clone();
        let known = node.start();
        for _ in 0..30 {
            copy.start();
            assert!(!copy.follows(known));
        }
        node.start();
        assert!(node.follows(known));
    }

    #[test]
    fn an_old_copy_that_was_never_started_under_this_rule_does_not_follow() {
        let mut node = Starts::default();
        // Earlier builds drew at random.
        node.0.push(7 << 100);
        let mut copy = node.clone();
        let known = node.start();
        copy.start();
        assert!(!copy.follows(known));
        assert!(node.follows(7 << 100) && copy.follows(7 << 100));
    }

    #[test]
    fn a_start_of_an_earlier_build_and_one_after_a_damaged_file_are_not_refused() {
        let mut node = Starts::default();
        let known = node.start();
        assert!(follows(7 << 100, &[], known), "it shows no number");
        assert!(follows(draw_without_earlier(1_700_000_000), &[], known));
        assert!(follows(draw_without_earlier(u64::MAX), &[], known));
    }
}
