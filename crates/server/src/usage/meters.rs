//! What is measured of the account, of a basin and of a stream.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use s2_common::access::Operation;

use super::series::Series;

/// What a series measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meter {
    /// Requests for an operation that succeeded.
    Requests(Operation),
    /// Minutes in which a connection appended to a stream of the standard storage class.
    StandardAppends,
    /// The same of the express storage class.
    ExpressAppends,
    /// Reads with one answer.
    UnaryReads,
    /// Minutes in which a connection read a stream in a session.
    StreamingReads,
    /// Metered bytes that were appended.
    AppendedBytes,
    /// Metered bytes that were read.
    ReadBytes,
    /// Metered bytes that are stored, a gauge.
    StoredBytes,
    /// Number of streams, a gauge.
    Streams,
}

/// The number of the first meter that is not of requests: above all numbers of operations.
const FIRST: u32 = 1 << 16;

const OTHERS: [Meter; 8] = [
    Meter::StandardAppends,
    Meter::ExpressAppends,
    Meter::UnaryReads,
    Meter::StreamingReads,
    Meter::AppendedBytes,
    Meter::ReadBytes,
    Meter::StoredBytes,
    Meter::Streams,
];

impl Meter {
    /// Its number in the file of the measurements.
    pub(crate) fn number(self) -> u32 {
        match self {
            Meter::Requests(operation) => operation as u32,
            Meter::StandardAppends => FIRST,
            Meter::ExpressAppends => FIRST + 1,
            Meter::UnaryReads => FIRST + 2,
            Meter::StreamingReads => FIRST + 3,
            Meter::AppendedBytes => FIRST + 4,
            Meter::ReadBytes => FIRST + 5,
            Meter::StoredBytes => FIRST + 6,
            Meter::Streams => FIRST + 7,
        }
    }

    /// The meter of a number, if this build knows it.
    pub(crate) fn of_number(number: u32) -> Option<Meter> {
        let operations = esker_node::OPERATIONS.into_iter().map(Meter::Requests);
        let mut all = operations.chain(OTHERS);
        all.find(|meter| meter.number() == number)
    }
}

impl Ord for Meter {
    fn cmp(&self, other: &Meter) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for Meter {
    fn partial_cmp(&self, other: &Meter) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The series of the account, of a basin or of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meters(BTreeMap<Meter, Series>);

impl Meters {
    pub(crate) fn add(&mut self, meter: Meter, now: u32, value: u64) {
        self.series(meter).add(now, value);
    }

    pub(crate) fn series(&mut self, meter: Meter) -> &mut Series {
        self.0.entry(meter).or_default()
    }

    pub(crate) fn get(&self, meter: Meter) -> Option<&Series> {
        self.0.get(&meter)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Meter, &Series)> {
        self.0.iter().map(|(meter, series)| (*meter, series))
    }

    /// Removes what is kept no longer.
    pub(crate) fn forget(&mut self, now: u32) {
        self.0.retain(|meter, series| {
            match meter {
                Meter::StoredBytes => series.forget_readings(now),
                _ => series.forget(now),
            }
            series.points() > 0
        });
    }

    pub(crate) fn points(&self) -> usize {
        self.0.values().map(Series::points).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_meter_keeps_its_number() {
        let operations = esker_node::OPERATIONS.into_iter().map(Meter::Requests);
        for meter in operations.chain(OTHERS) {
            assert_eq!(Meter::of_number(meter.number()), Some(meter));
        }
        // These numbers are part of the file's format.
        assert_eq!(Meter::Requests(Operation::ListBasins).number(), 1);
        assert_eq!(Meter::Streams.number(), 65_543);
        assert_eq!(Meter::of_number(9_999), None);
    }
}
