//! Checks whether one order of events explains all answers of a stream.
//!
//! The stream is a log, so the order of its appends is known: their positions. The moment at which each took effect
//! lies between its request and its answer, after the append before it and before the append after it ([`Moments`]).
//! An answer that names the tail `v` means that at some moment between its request and its answer exactly the first
//! `v` appends had taken effect. So every answer is a bound on moments:
//!
//! - append `p` took effect no earlier than its request and no later than its answer; if its answer was lost, it took
//!   effect at any moment after its request, or never;
//! - an append that demanded a position is there, or was refused because the tail was another one;
//! - tail `v`, requested at `a` and answered at `b`: append `v − 1` took effect no later than `b`,
//!   append `v` no earlier than `a`;
//! - a record read at position `p`: append `p` took effect no later than the answer.
//!
//! (For a tail, meeting both of its bounds is enough: the later of `a` and the moment of append `v − 1` is a moment
//! that fits.)

use std::collections::HashMap;
use std::time::Duration;

use super::moments::Moments;

/// An answer to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its append of record `id` is at position `at`; the tail is at least this.
    Appended {
        /// The record.
        id: u64,
        /// Its position.
        at: u64,
        /// The tail.
        tail: u64,
        /// The position that it demanded, if it did.
        expected: Option<u64>,
    },
    /// Its append of record `id` was refused: the tail is this.
    Refused {
        /// The record.
        id: u64,
        /// The tail.
        tail: u64,
        /// The position that it demanded, if it did.
        expected: Option<u64>,
    },
    /// Its append of record `id` was refused for another reason than the tail, such as that nobody leads.
    NotMade {
        /// The record.
        id: u64,
    },
    /// Whether its append of record `id` has taken effect, or ever will, is not known.
    Unknown {
        /// The record.
        id: u64,
    },
    /// The tail is this.
    Tail {
        /// The tail.
        tail: u64,
    },
    /// These records are at `from` and after; if the read reached the tail, it is `reached`.
    Read {
        /// Position of the first one.
        from: u64,
        /// The records.
        ids: Vec<u64>,
        /// The tail.
        reached: Option<u64>,
    },
}

impl Answer {
    /// The tail that the answer names or implies.
    pub fn tail_seen(&self) -> Option<u64> {
        match self {
            Answer::Appended { tail, .. }
            | Answer::Refused { tail, .. }
            | Answer::Tail { tail } => Some(*tail),
            Answer::Read { from, ids, .. } => Some(from + ids.len() as u64),
            Answer::NotMade { .. } | Answer::Unknown { .. } => None,
        }
    }
}

/// A request and its answer, with the moments of both on one clock.
#[derive(Clone, Debug)]
pub struct Event {
    /// The moment of the request.
    pub asked: Duration,
    /// The moment of the answer.
    pub answered: Duration,
    /// The answer.
    pub answer: Answer,
}

/// Checks a history against the records that the stream held afterwards, by position.
///
/// # Errors
///
/// Why no order explains it.
pub fn check(events: &[Event], contents: &[u64]) -> Result<(), String> {
    let mut moments = Moments::new(contents.len());
    let places = check_contents(events, contents)?;
    for event in events {
        match event.answer {
            Answer::Appended { at, .. } => moments.no_earlier(at, event.asked),
            Answer::Refused { tail, .. } | Answer::Tail { tail } => {
                moments.no_earlier(tail, event.asked);
            }
            Answer::Unknown { id } => {
                if let Some(at) = places.get(&id) {
                    moments.no_earlier(*at as u64, event.asked);
                }
            }
            Answer::Read { reached, .. } => {
                if let Some(tail) = reached {
                    moments.no_earlier(tail, event.asked);
                }
            }
            Answer::NotMade { .. } => {}
        }
        let seen = match &event.answer {
            Answer::Appended { at, tail, .. } => {
                if tail <= at {
                    return Err(format!("a tail that does not cover its append: {event:?}"));
                }
                *tail
            }
            answer => answer.tail_seen().unwrap_or(0),
        };
        if let Some(last) = seen.checked_sub(1)
            && !moments.no_later(last, event.answered)
        {
            return Err(format!("a tail of which nothing is there: {event:?}"));
        }
    }
    moments.solve().map(drop)
}

fn index(at: u64) -> Option<usize> {
    usize::try_from(at).ok()
}

/// Checks what was answered to an append that demanded a position.
fn check_condition(event: &Event) -> Result<(), String> {
    let is_right = match event.answer {
        Answer::Appended { at, expected, .. } => expected.is_none_or(|it| it == at),
        Answer::Refused { tail, expected, .. } => expected.is_some_and(|it| it != tail),
        _ => true,
    };
    match is_right {
        true => Ok(()),
        false => Err(format!("against the condition of the append: {event:?}")),
    }
}

/// Checks that appended records are at their acknowledged positions, which are those that they demanded, once; that refused
/// ones are absent, and had demanded another position than the tail; and that what was read is what the stream holds. Returns where each record is.
fn check_contents(events: &[Event], contents: &[u64]) -> Result<HashMap<u64, usize>, String> {
    let mut places: HashMap<u64, usize> = HashMap::new();
    for (at, id) in contents.iter().enumerate() {
        if let Some(before) = places.insert(*id, at) {
            return Err(format!("record {id} is at {before} and at {at}"));
        }
    }
    let mut asked_for = 0;
    for event in events {
        check_condition(event)?;
        match &event.answer {
            Answer::Appended { id, at, .. } => {
                asked_for += 1;
                if places.get(id).copied() != index(*at) {
                    let place = places.get(id);
                    return Err(format!("{event:?}, and it is at {place:?}"));
                }
            }
            Answer::Refused { id, .. } | Answer::NotMade { id } => {
                if let Some(at) = places.get(id) {
                    return Err(format!("{event:?}, and it is at {at}"));
                }
            }
            Answer::Unknown { id } => asked_for += usize::from(places.contains_key(id)),
            Answer::Tail { .. } => {}
            Answer::Read { from, ids, reached } => {
                let from = index(*from).unwrap_or(usize::MAX);
                let to = from.saturating_add(ids.len());
                if contents.get(from..to) != Some(&ids[..]) {
                    return Err(format!("other records than there are: {event:?}"));
                }
                if reached.is_some_and(|tail| index(tail) != Some(to)) {
                    return Err(format!("a tail that is not behind its records: {event:?}"));
                }
            }
        }
    }
    if asked_for != contents.len() {
        return Err(format!(
            "{asked_for} appends were acknowledged or may have been made, {} records are there",
            contents.len()
        ));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    //! Tests that the checker finds each fault, and none where there is none.

    use super::*;

    fn event(asked: u64, answered: u64, answer: Answer) -> Event {
        Event {
            asked: Duration::from_millis(asked),
            answered: Duration::from_millis(answered),
            answer,
        }
    }

    fn appended(asked: u64, answered: u64, id: u64, at: u64) -> Event {
        let appended = Answer::Appended {
            id,
            at,
            tail: at + 1,
            expected: None,
        };
        event(asked, answered, appended)
    }

    fn tail(asked: u64, answered: u64, tail: u64) -> Event {
        event(asked, answered, Answer::Tail { tail })
    }

    fn refused(asked: u64, answered: u64, id: u64, tail: u64) -> Event {
        let refused = Answer::Refused {
            id,
            tail,
            expected: Some(tail + 1),
        };
        event(asked, answered, refused)
    }

    fn read(asked: u64, answered: u64, from: u64, ids: &[u64], reached: Option<u64>) -> Event {
        let ids = ids.to_vec();
        event(asked, answered, Answer::Read { from, ids, reached })
    }

    /// Three consecutive appends: records 10, 11, 12.
    fn three() -> Vec<Event> {
        vec![
            appended(0, 10, 10, 0),
            appended(20, 30, 11, 1),
            appended(40, 50, 12, 2),
        ]
    }

    const CONTENTS: [u64; 3] = [10, 11, 12];

    #[track_caller]
    fn fine(more: impl IntoIterator<Item = Event>) {
        let events: Vec<Event> = three().into_iter().chain(more).collect();
        if let Err(why) = check(&events, &CONTENTS) {
            panic!("{why}: {events:#?}");
        }
    }

    #[track_caller]
    fn faulty(more: impl IntoIterator<Item = Event>) {
        let events: Vec<Event> = three().into_iter().chain(more).collect();
        assert!(check(&events, &CONTENTS).is_err(), "{events:#?}");
    }

    #[test]
    fn answers_that_one_order_explains_are_fine() {
        fine([]);
        fine([tail(11, 19, 1), tail(31, 39, 2), tail(51, 60, 3)]);
        // While an append is under way, either tail is possible, and it may rise from one answer to the next.
        fine([tail(21, 22, 1), tail(23, 24, 2), tail(25, 29, 2)]);
        fine([refused(21, 29, 99, 1), refused(22, 28, 98, 2)]);
        fine([read(45, 46, 0, &[10, 11, 12], Some(3))]);
        fine([read(60, 70, 1, &[11], None)]);
        // Many concurrent appends, in any order of positions.
        let events = [
            appended(0, 100, 12, 0),
            appended(0, 100, 10, 1),
            appended(0, 100, 11, 2),
            tail(50, 60, 2),
            tail(61, 70, 2),
            tail(71, 80, 3),
        ];
        assert_eq!(check(&events, &[12, 10, 11]), Ok(()));
    }

    #[test]
    fn an_append_whose_answer_was_lost_may_be_there_once_from_its_request_on() {
        let unknown = |asked, id| event(asked, asked + 1, Answer::Unknown { id });
        fine([unknown(60, 99)]);
        // It takes effect long after its client has given up.
        let events = [appended(0, 10, 10, 0), unknown(20, 11), tail(50, 60, 1)];
        assert_eq!(check(&events, &[10, 11]), Ok(()));
        // Not before it was sent, and not once more.
        let events = [appended(0, 10, 10, 0), unknown(20, 11), tail(15, 16, 2)];
        assert!(check(&events, &[10, 11]).is_err());
        let events = [appended(0, 10, 10, 0), unknown(20, 11)];
        assert!(check(&events, &[10, 11, 11]).is_err());
        // It does not go away.
        let events = [
            appended(0, 10, 10, 0),
            unknown(20, 11),
            tail(30, 31, 2),
            tail(32, 33, 1),
        ];
        assert!(check(&events, &[10, 11]).is_err());
    }

    #[test]
    fn an_acknowledged_append_that_is_not_there_is_found() {
        faulty([appended(60, 70, 13, 3)]);
    }

    #[test]
    fn an_append_that_is_elsewhere_is_found() {
        let mut events = three();
        events[1] = appended(20, 30, 11, 2);
        events[2] = appended(40, 50, 12, 1);
        assert!(check(&events, &CONTENTS).is_err());
    }

    #[test]
    fn a_record_that_is_there_twice_is_found() {
        assert!(check(&three(), &[10, 11, 12, 11]).is_err());
    }

    #[test]
    fn a_record_that_nobody_appended_is_found() {
        assert!(check(&three(), &[10, 11, 12, 77]).is_err());
    }

    #[test]
    fn a_refused_record_that_is_there_is_found() {
        faulty([refused(60, 70, 12, 3)]);
        faulty([event(60, 70, Answer::NotMade { id: 12 })]);
        fine([event(60, 70, Answer::NotMade { id: 99 })]);
    }

    #[test]
    fn positions_against_real_time_are_found() {
        // The append at 0 was requested after the one at 1 had been answered.
        let events = [appended(20, 30, 10, 0), appended(0, 10, 11, 1)];
        assert!(check(&events, &[10, 11]).is_err());
    }

    #[test]
    fn a_tail_that_misses_an_acknowledged_append_is_found() {
        faulty([tail(31, 35, 1)]);
        faulty([tail(55, 60, 0)]);
    }

    #[test]
    fn a_tail_ahead_of_its_time_is_found() {
        faulty([tail(11, 15, 2)]);
        faulty([tail(60, 70, 4)]);
    }

    #[test]
    fn a_tail_that_goes_back_is_found() {
        // Both answers fall within the time of an append, but in this order no moment fits.
        faulty([tail(21, 22, 2), tail(23, 24, 1)]);
    }

    #[test]
    fn a_refusal_with_a_tail_that_never_was_in_its_time_is_found() {
        faulty([refused(60, 70, 99, 2)]);
        faulty([refused(1, 5, 99, 2)]);
    }

    #[test]
    fn a_read_of_other_records_is_found() {
        faulty([read(60, 70, 0, &[10, 12], None)]);
        faulty([read(60, 70, 2, &[12, 13], None)]);
    }

    #[test]
    fn a_read_ahead_of_its_time_is_found() {
        faulty([read(11, 15, 0, &[10, 11], None)]);
    }

    #[test]
    fn a_read_that_stops_short_of_an_acknowledged_append_is_found() {
        faulty([read(60, 70, 0, &[10, 11], Some(2))]);
    }

    #[test]
    fn an_ack_whose_tail_is_behind_it_is_found() {
        let mut events = three();
        events[2] = event(
            40,
            50,
            Answer::Appended {
                id: 12,
                at: 2,
                tail: 2,
                expected: None,
            },
        );
        assert!(check(&events, &CONTENTS).is_err());
    }

    #[test]
    fn an_append_elsewhere_than_demanded_and_one_that_is_refused_where_it_fits_are_found() {
        let demanded = |at, expected| {
            let mut events = three();
            events[2] = event(
                40,
                50,
                Answer::Appended {
                    id: 12,
                    at,
                    tail: at + 1,
                    expected: Some(expected),
                },
            );
            check(&events, &CONTENTS)
        };
        assert_eq!(demanded(2, 2), Ok(()));
        assert!(demanded(2, 1).is_err(), "it demanded another position");
        let refused = |expected| {
            let (id, tail) = (99, 3);
            event(60, 70, Answer::Refused { id, tail, expected })
        };
        fine([refused(Some(2))]);
        faulty([refused(Some(3))]);
        faulty([refused(None)]);
    }
}
