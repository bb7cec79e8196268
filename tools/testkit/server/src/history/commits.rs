//! What clients of a state store sent and were answered, and whether one order of its commits explains all of it.
//!
//! A commit writes some keys, each perhaps on the condition of a version. Commits are numbered from 1 on without a
//! gap, and their numbers are their order. A read names the version of a key and the commit that made it, so it
//! bounds the moments of that commit and of the next one that writes the key ([`Moments`]).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::moments::{Moments, Solved};

/// A key that a commit writes, and the version that it is to have before, if that is a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: String,
    /// The version; 0 if there is to be none.
    pub expected: Option<u64>,
}

/// The answer to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The commit with this number was made.
    Committed(u64),
    /// It was refused, because a version was another one.
    Conflict,
    /// It was refused for another reason.
    Refused,
    /// Whether it was made is not known.
    Unknown,
}

/// A request and its answer, with the moments of both on one clock.
#[derive(Clone, Debug)]
pub struct Event {
    /// The moment of the request: of the commit, not of what was staged before it.
    pub asked: Duration,
    /// The moment of the answer.
    pub answered: Duration,
    /// What it was.
    pub what: What,
}

/// What a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It committed writes of the value `id`, which nobody else writes.
    Commit {
        /// The value.
        id: u64,
        /// The keys.
        writes: Vec<Write>,
        /// The answer.
        answer: Answer,
    },
    /// It read a key.
    Read {
        /// The key.
        key: String,
        /// The version; 0 if there is none.
        version: u64,
        /// The commit that made it; 0 if there is none.
        commit: u64,
        /// Its value.
        id: Option<u64>,
    },
}

/// A commit that the store has: the value of all its writes, and the version that it gave to each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub number: u64,
    /// The value.
    pub id: u64,
    /// The keys and versions.
    pub versions: BTreeMap<String, u64>,
}

/// Checks events against the commits that the store had afterwards, in order.
///
/// # Errors
///
/// What contradicts what.
pub fn check(events: &[Event], commits: &[Commit]) -> Result<(), String> {
    let by_key = check_numbers(commits)?;
    let places = places(commits)?;
    let mut moments = Moments::new(commits.len());
    let mut known = 0;
    for event in events {
        match &event.what {
            What::Commit { id, writes, answer } => {
                let found = places.get(id).map(|at| &commits[*at]);
                check_commit(event, answer, writes, found)?;
                let Some(found) = found else { continue };
                known += 1;
                moments.no_earlier(found.number - 1, event.asked);
                if *answer != Answer::Unknown {
                    moments.no_later(found.number - 1, event.answered);
                }
            }
            What::Read {
                key,
                version,
                commit,
                id,
            } => {
                let written = by_key.get(key.as_str()).map_or(&[][..], Vec::as_slice);
                check_read(event, (*version, *commit, *id), written, commits)?;
                if let Some(last) = commit.checked_sub(1) {
                    moments.no_later(last, event.answered);
                }
                let next = written.get(usize::try_from(*version).unwrap_or(usize::MAX));
                if let Some(next) = next {
                    moments.no_earlier(next - 1, event.asked);
                }
            }
        }
    }
    if known != commits.len() {
        return Err(format!(
            "{} commits are there, and clients sent {known} of them",
            commits.len()
        ));
    }
    let solved = moments.solve()?;
    for event in events {
        check_conflict(event, &by_key, &solved)?;
    }
    Ok(())
}

/// The commits of each key, in order: the first one made its version 1.
type ByKey<'a> = HashMap<&'a str, Vec<u64>>;

/// Checks that commits and versions are numbered without a gap.
fn check_numbers(commits: &[Commit]) -> Result<ByKey<'_>, String> {
    let mut by_key = ByKey::new();
    for (commit, number) in commits.iter().zip(1..) {
        if commit.number != number {
            return Err(format!("commit {number} is missing: {commit:?}"));
        }
        for (key, version) in &commit.versions {
            let written = by_key.entry(key.as_str()).or_default();
            written.push(number);
            if *version != written.len() as u64 {
                return Err(format!(
                    "the version of {key} was to be {}: {commit:?}",
                    written.len()
                ));
            }
        }
    }
    Ok(by_key)
}

/// Where the commit of each value is.
fn places(commits: &[Commit]) -> Result<HashMap<u64, usize>, String> {
    let mut places = HashMap::new();
    for (at, commit) in commits.iter().enumerate() {
        if let Some(before) = places.insert(commit.id, at) {
            return Err(format!(
                "{} was committed twice: {:?} and {commit:?}",
                commit.id, commits[before]
            ));
        }
    }
    Ok(places)
}

fn check_commit(
    event: &Event,
    answer: &Answer,
    writes: &[Write],
    found: Option<&Commit>,
) -> Result<(), String> {
    match (answer, found) {
        (Answer::Committed(number), Some(found)) if found.number == *number => {}
        (Answer::Committed(_), _) => {
            return Err(format!(
                "lost, or elsewhere: {event:?}, and there is {found:?}"
            ));
        }
        (Answer::Conflict | Answer::Refused, Some(found)) => {
            return Err(format!("refused, yet there: {event:?} is {found:?}"));
        }
        (Answer::Conflict | Answer::Refused | Answer::Unknown, None) => return Ok(()),
        (Answer::Unknown, Some(_)) => {}
    }
    let Some(found) = found else { return Ok(()) };
    let is_whole = writes.len() == found.versions.len()
        && (writes.iter()).all(|write| found.versions.contains_key(&write.key));
    if !is_whole {
        return Err(format!("in part: {event:?} is {found:?}"));
    }
    for write in writes {
        let version = found.versions[&write.key];
        if write
            .expected
            .is_some_and(|expected| expected + 1 != version)
        {
            return Err(format!(
                "made although a version was another: {event:?} is {found:?}"
            ));
        }
    }
    Ok(())
}

fn check_read(
    event: &Event,
    (version, commit, id): (u64, u64, Option<u64>),
    written: &[u64],
    commits: &[Commit],
) -> Result<(), String> {
    let Some(before) = version.checked_sub(1) else {
        return match (commit, id) {
            (0, None) => Ok(()),
            _ => Err(format!("a version 0 that has something: {event:?}")),
        };
    };
    let made = usize::try_from(before).ok().and_then(|at| written.get(at));
    let of = made.map(|number| &commits[*number as usize - 1]);
    match of {
        Some(of) if of.number == commit && Some(of.id) == id => Ok(()),
        _ => Err(format!(
            "read what is not there: {event:?}, and there is {of:?}"
        )),
    }
}

/// Checks that a commit was not refused for the version of a key that had it all the time.
fn check_conflict(event: &Event, by_key: &ByKey<'_>, solved: &Solved) -> Result<(), String> {
    let What::Commit {
        writes,
        answer: Answer::Conflict,
        ..
    } = &event.what
    else {
        return Ok(());
    };
    let had_it = |write: &Write| {
        let Some(expected) = write.expected else {
            return true;
        };
        let written = by_key
            .get(write.key.as_str())
            .map_or(&[][..], Vec::as_slice);
        let expected = usize::try_from(expected).unwrap_or(usize::MAX);
        let made = match expected.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => match written.get(before) {
                // The version came after the end, if ever.
                None => return false,
                Some(number) => solved.latest(number - 1),
            },
        };
        let replaced = written.get(expected);
        let replaced = replaced.map_or(Duration::MAX, |number| solved.earliest(number - 1));
        made <= event.asked && replaced >= event.answered
    };
    match writes.iter().all(had_it) {
        true => Err(format!("refused although all versions matched: {event:?}")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    //! Tests that the checker finds each fault, and none where there is none.

    use super::*;

    fn writes(keys: &[(&str, Option<u64>)]) -> Vec<Write> {
        let write = |(key, expected): &(&str, Option<u64>)| Write {
            key: (*key).to_owned(),
            expected: *expected,
        };
        keys.iter().map(write).collect()
    }

    fn event(asked: u64, answered: u64, what: What) -> Event {
        Event {
            asked: Duration::from_millis(asked),
            answered: Duration::from_millis(answered),
            what,
        }
    }

    fn commit(
        (asked, answered): (u64, u64),
        id: u64,
        keys: &[(&str, Option<u64>)],
        answer: Answer,
    ) -> Event {
        let writes = writes(keys);
        event(asked, answered, What::Commit { id, writes, answer })
    }

    fn read((asked, answered): (u64, u64), key: &str, of: (u64, u64, Option<u64>)) -> Event {
        let (version, commit, id) = of;
        let key = key.to_owned();
        let what = What::Read {
            key,
            version,
            commit,
            id,
        };
        event(asked, answered, what)
    }

    fn there(number: u64, id: u64, versions: &[(&str, u64)]) -> Commit {
        let versions = versions
            .iter()
            .map(|(key, version)| ((*key).to_owned(), *version));
        Commit {
            number,
            id,
            versions: versions.collect(),
        }
    }

    /// Value 10 in `a` and `b`, then 11 in `a` on the condition of version 1, then 12 in `b`.
    fn three() -> Vec<Event> {
        vec![
            commit(
                (0, 10),
                10,
                &[("a", None), ("b", None)],
                Answer::Committed(1),
            ),
            commit((20, 30), 11, &[("a", Some(1))], Answer::Committed(2)),
            commit((40, 50), 12, &[("b", None)], Answer::Committed(3)),
        ]
    }

    fn contents() -> Vec<Commit> {
        vec![
            there(1, 10, &[("a", 1), ("b", 1)]),
            there(2, 11, &[("a", 2)]),
            there(3, 12, &[("b", 2)]),
        ]
    }

    #[track_caller]
    fn fine(more: impl IntoIterator<Item = Event>) {
        let events: Vec<Event> = three().into_iter().chain(more).collect();
        if let Err(why) = check(&events, &contents()) {
            panic!("{why}: {events:#?}");
        }
    }

    #[track_caller]
    fn faulty(expected: &str, more: impl IntoIterator<Item = Event>) {
        let events: Vec<Event> = three().into_iter().chain(more).collect();
        let why = check(&events, &contents()).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }

    #[track_caller]
    fn with_contents(expected: &str, change: impl FnOnce(&mut Vec<Commit>)) {
        let mut commits = contents();
        change(&mut commits);
        let why = check(&three(), &commits).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }

    #[test]
    fn answers_that_one_order_explains_are_fine() {
        fine([]);
        fine([
            read((11, 19), "a", (1, 1, Some(10))),
            read((31, 39), "a", (2, 2, Some(11))),
            read((31, 39), "b", (1, 1, Some(10))),
            read((5, 6), "a", (0, 0, None)),
            read((60, 61), "never", (0, 0, None)),
        ]);
        // While a commit is under way, either version is possible.
        fine([
            read((21, 22), "a", (1, 1, Some(10))),
            read((23, 24), "a", (2, 2, Some(11))),
        ]);
        // The version was another before the request, or became another during it.
        fine([
            commit((35, 36), 99, &[("a", Some(1))], Answer::Conflict),
            commit((21, 29), 98, &[("a", Some(1))], Answer::Conflict),
            commit((60, 70), 97, &[("a", Some(9))], Answer::Conflict),
            commit(
                (60, 70),
                96,
                &[("a", Some(2)), ("b", Some(1))],
                Answer::Conflict,
            ),
            commit((60, 70), 95, &[("a", None)], Answer::Refused),
            commit((60, 70), 94, &[("a", None)], Answer::Unknown),
        ]);
    }

    #[test]
    fn a_commit_whose_answer_was_lost_may_take_effect_later() {
        let mut events = three();
        events[1] = commit((20, 21), 11, &[("a", Some(1))], Answer::Unknown);
        events.push(read((25, 26), "a", (1, 1, Some(10))));
        events.push(read((35, 36), "a", (2, 2, Some(11))));
        assert_eq!(check(&events, &contents()), Ok(()));
        // But it does not go away again.
        events.push(read((37, 38), "a", (1, 1, Some(10))));
        assert!(check(&events, &contents()).is_err());
    }

    #[test]
    fn a_commit_that_is_lost_doubled_torn_or_made_up_is_found() {
        let lost = commit((60, 70), 13, &[("a", None)], Answer::Committed(4));
        faulty("lost, or elsewhere", [lost]);
        with_contents("lost, or elsewhere", |commits| {
            commits.swap(1, 2);
            (commits[1].number, commits[2].number) = (2, 3);
        });
        with_contents("committed twice", |commits| {
            commits.push(there(4, 11, &[("a", 3)]));
        });
        with_contents("in part", |commits| {
            commits[0].versions.remove("b");
            commits[2].versions.insert("b".to_owned(), 1);
        });
        with_contents("clients sent 3 of them", |commits| {
            commits.push(there(4, 77, &[("c", 1)]));
        });
        with_contents("commit 2 is missing", |commits| drop(commits.remove(1)));
        with_contents("the version of a was to be 2", |commits| {
            commits[1].versions.insert("a".to_owned(), 3);
        });
    }

    #[test]
    fn a_refused_commit_that_is_there_is_found() {
        let mut events = three();
        events[2] = commit((40, 50), 12, &[("b", None)], Answer::Refused);
        let why = check(&events, &contents()).unwrap_err();
        assert!(why.contains("refused, yet there"), "{why}");
    }

    #[test]
    fn a_condition_that_was_not_kept_is_found_also_where_the_answer_was_lost() {
        for answer in [Answer::Committed(2), Answer::Unknown] {
            let mut events = three();
            events[1] = commit((20, 30), 11, &[("a", Some(0))], answer);
            let why = check(&events, &contents()).unwrap_err();
            assert!(why.contains("although a version was another"), "{why}");
        }
    }

    #[test]
    fn a_conflict_over_a_version_that_was_there_all_the_time_is_found() {
        let conflict = |key: &[(&str, Option<u64>)]| commit((60, 70), 99, key, Answer::Conflict);
        faulty("all versions matched", [conflict(&[("a", Some(2))])]);
        faulty(
            "all versions matched",
            [conflict(&[("a", Some(2)), ("b", Some(2))])],
        );
        faulty("all versions matched", [conflict(&[("never", Some(0))])]);
    }

    #[test]
    fn a_read_of_the_past_or_of_the_future_is_found() {
        faulty(
            "can have taken effect",
            [read((31, 39), "a", (1, 1, Some(10)))],
        );
        faulty(
            "can have taken effect",
            [read((60, 70), "b", (1, 1, Some(10)))],
        );
        faulty(
            "can have taken effect",
            [read((11, 15), "a", (2, 2, Some(11)))],
        );
        faulty("can have taken effect", [read((60, 70), "a", (0, 0, None))]);
        // Two reads, each possible, in the wrong order.
        faulty(
            "can have taken effect",
            [
                read((21, 22), "a", (2, 2, Some(11))),
                read((23, 24), "a", (1, 1, Some(10))),
            ],
        );
    }

    #[test]
    fn a_read_of_what_is_not_there_is_found() {
        faulty(
            "read what is not there",
            [read((60, 70), "a", (3, 4, Some(13)))],
        );
        faulty(
            "read what is not there",
            [read((60, 70), "a", (2, 2, Some(10)))],
        );
        faulty(
            "read what is not there",
            [read((60, 70), "a", (2, 3, Some(11)))],
        );
        faulty("a version 0", [read((60, 70), "a", (0, 1, None))]);
    }

    #[test]
    fn two_keys_that_are_read_across_a_commit_are_found() {
        // `b` has what commit 3 made before `a` has what commit 2 made.
        faulty(
            "can have taken effect",
            [
                read((41, 42), "b", (2, 3, Some(12))),
                read((43, 44), "a", (1, 1, Some(10))),
            ],
        );
    }
}
