//! Which segment is moved, and what that costs.

use super::*;

fn usage(bytes: u64, live: u64) -> Usage {
    Usage { bytes, live }
}

#[test]
fn the_worst_segment_is_moved_and_the_newest_of_those_that_are_nearly_equal() {
    let none = HashSet::new();
    let nearly = [
        (1, usage(1000, 500)),
        (2, usage(1000, 520)),
        (3, usage(1000, 600)),
        (4, usage(1000, 1000)),
    ];
    assert_eq!(worst(&nearly, None, &none), Some(2));
    assert_eq!(worst(&nearly, None, &HashSet::from([2])), Some(1));
    let much_worse = [(1, usage(1000, 100)), (2, usage(1000, 500))];
    assert_eq!(worst(&much_worse, None, &none), Some(1));
    // What is moved has to fit into the free space.
    let large = [(1, usage(1000, 10)), (2, usage(10_000, 90))];
    assert_eq!(worst(&large, Some(100), &none), Some(1));
    assert_eq!(worst(&large, Some(10), &none), None);
    // A segment without rows is dropped, and one without dead bytes gives nothing back.
    let others = [(1, usage(1000, 0)), (2, usage(1000, 1000))];
    assert_eq!(worst(&others, None, &none), None);
}

/// A part of a segment, and when it is trimmed.
type Part = (u64, usize);

/// What was moved in all for each byte written, what was moved on one day at most for each byte written on it, and the
/// most bytes of segments for each live byte over some days, for streams that keep their records for so many days and
/// get so many bytes a day.
fn simulate(streams: &[Part], days: usize) -> (f64, f64, f64) {
    const WARM_UP: usize = 150;
    let mut segments: Vec<(u64, u64, Vec<Part>)> = Vec::new();
    let (mut moved, mut written, mut most, mut largest) = (0, 0, 0.0_f64, 0.0_f64);
    for day in 0..WARM_UP + days {
        let mut present: Vec<Part> = streams.iter().map(|(b, keep)| (*b, day + keep)).collect();
        let new: u64 = streams.iter().map(|(bytes, _)| bytes).sum();
        let live = |parts: &[Part]| -> u64 {
            let parts = parts.iter().filter(|(_, until)| *until > day);
            parts.map(|(bytes, _)| bytes).sum()
        };
        let (mut budget, mut today) = (new, 0);
        while budget > 0 {
            segments.retain(|(_, _, parts)| live(parts) > 0);
            let usages: Vec<_> = segments
                .iter()
                .map(|(number, bytes, parts)| (*number, usage(*bytes, live(parts))))
                .collect();
            let total = Total::of(&usages);
            if !is_too_much(total.garbage, total.live + live(&present)) {
                break;
            }
            let Some(number) = worst(&usages, None, &HashSet::new()) else {
                break;
            };
            let at = segments.iter().position(|(n, _, _)| *n == number).unwrap();
            let (_, _, parts) = segments.remove(at);
            let bytes = live(&parts);
            present.extend(parts.into_iter().filter(|(_, until)| *until > day));
            budget = budget.saturating_sub(bytes);
            today += bytes;
        }
        let bytes = present.iter().map(|(bytes, _)| bytes).sum();
        segments.push((day as u64, bytes, present));
        if day >= WARM_UP {
            written += new;
            moved += today;
            largest = largest.max(today as f64 / new as f64);
            let all: u64 = segments.iter().map(|(_, bytes, _)| bytes).sum();
            let live: u64 = segments.iter().map(|(_, _, parts)| live(parts)).sum();
            most = most.max(all as f64 / live as f64);
        }
    }
    (moved as f64 / written as f64, largest, most)
}

#[test]
fn little_is_moved_and_files_stay_below_one_and_a_half_of_what_is_live() {
    // (streams, most bytes moved for each byte written: in all, and on one day)
    let cases: [(&[Part], f64, f64); 4] = [
        (&[(1000, 20)], 0.0, 0.0),
        (&[(500, 10), (500, 30)], 0.2, 0.5),
        (&[(333, 5), (333, 15), (333, 40)], 0.4, 0.5),
        // A day's budget may end within a segment.
        (&[(900, 10), (100, 100)], 0.6, 1.25),
    ];
    for (streams, most_moved, most_on_a_day) in cases {
        let (moved, largest, disk) = simulate(streams, 300);
        assert!(moved <= most_moved, "{streams:?}: {moved} moved");
        assert!(
            largest <= most_on_a_day,
            "{streams:?}: {largest} moved on a day"
        );
        assert!(disk <= 1.5, "{streams:?}: {disk}");
    }
}
