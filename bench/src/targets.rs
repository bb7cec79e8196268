//! The figures that are measured and what Esker is expected to reach.
//!
//! A goal has two marks: what *must* be reached, and the *aim* beyond it.

use crate::sizes::Sizes;
use bench_harness::stats;

/// One figure of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Median of one client's unary appends.
    OneP50,
    /// 99th percentile of the same.
    OneP99,
    /// Median of the disk's own fdatasync, measured just before.
    DiskSync,
    /// Unary appends of 32 clients in a second.
    ManyRate,
    /// Median of the same.
    ManyP50,
    /// Write rate of `s2 bench`.
    BenchWrite,
    /// Its median time to an acknowledgement.
    BenchAck,
    /// 99th percentile of the time from its appends to its reads, while it writes.
    BenchEndToEnd,
    /// Read rate of `s2 bench` for the same stream afterwards.
    BenchCatchUp,
    /// 99th percentile of the age of records when the only follower gets them.
    FollowerP99,
    /// Write rate meanwhile.
    FollowerWrite,
    /// The same with several followers.
    FollowersP99,
    /// Write rate meanwhile.
    FollowersWrite,
    /// Records in batches by eight append sessions.
    BatchRate,
    /// Reading one long stream.
    CatchUpOne,
    /// The same by the official client.
    CatchUpOneSdk,
    /// Reading some of many streams that were written interleaved.
    CatchUpInterleaved,
    /// The same after a restart, with nothing in the operating system's cache.
    CatchUpCold,
    /// Resident memory after all of the above.
    Resident,
    /// Its highest value so far.
    ResidentHighest,
    /// Streams made in a second.
    CreateRate,
    /// Time from start to service after SIGKILL.
    Restart,
    /// The same with twice the records.
    RestartTwice,
}

/// Which way is better, and by how much Esker has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At least `must` times the peer's figure.
    AtLeast {
        /// Multiple of the peer's figure that must be reached.
        must: f64,
        /// Multiple that is aimed at.
        aim: f64,
    },
    /// At most `must` times the peer's figure.
    AtMost {
        /// Multiple of the peer's figure that must not be passed.
        must: f64,
        /// What is aimed at.
        aim: Aim,
    },
    /// Under a value of its own, whatever the peer does.
    Under(f64),
    /// Reported for orientation.
    None,
}

/// The aim of an upper bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// Nothing beyond what must be reached.
    None,
    /// At most this multiple of the peer's figure.
    Times(f64),
    /// At most this many milliseconds over the disk's own fdatasync.
    OverDiskSync(f64),
}

/// How a figure compares with its goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The aim is reached.
    Aim,
    /// What must be reached is reached.
    Met,
    /// What must be reached is not reached.
    Missed,
    /// There is no goal, or a figure is missing.
    Open,
}

impl Metric {
    /// The text in the table's first column.
    pub fn label(self, sizes: &Sizes) -> String {
        match self {
            Self::OneP50 => "unary append, 1 client, p50".into(),
            Self::OneP99 => "unary append, 1 client, p99".into(),
            Self::DiskSync => "the disk alone: fdatasync of 4 KiB, p50".into(),
            Self::ManyRate => format!("unary append, {} clients", sizes.many_clients),
            Self::ManyP50 => format!("unary append, {} clients, p50", sizes.many_clients),
            Self::BenchWrite => "`s2 bench`, 8 KiB records, write".into(),
            Self::BenchAck => "`s2 bench`, ack p50".into(),
            Self::BenchEndToEnd => "`s2 bench`, end to end p99".into(),
            Self::BenchCatchUp => "`s2 bench`, catch-up read".into(),
            Self::FollowerP99 => "1 follower at full rate, end to end p99".into(),
            Self::FollowerWrite => "1 follower at full rate, write".into(),
            Self::FollowersP99 => {
                format!("{} followers at full rate, end to end p99", sizes.followers)
            }
            Self::FollowersWrite => format!("{} followers at full rate, write", sizes.followers),
            Self::BatchRate => format!(
                "256-byte records, batches of 100, {} sessions",
                sizes.batch_sessions
            ),
            Self::CatchUpOne => "catch-up read, one stream".into(),
            Self::CatchUpOneSdk => "catch-up read, one stream, by the S2 SDK".into(),
            Self::CatchUpInterleaved => format!(
                "catch-up read, one of {} interleaved",
                sizes.catch_up_streams
            ),
            Self::CatchUpCold => format!(
                "catch-up read, one of {} interleaved, cold",
                sizes.catch_up_streams
            ),
            Self::Resident => "resident memory after that".into(),
            Self::ResidentHighest => "resident memory, highest".into(),
            Self::CreateRate => format!(
                "{} streams created, {} connections",
                sizes.create_streams, sizes.create_connections
            ),
            Self::Restart => format!("restart, {}", millions(sizes.restart_records)),
            Self::RestartTwice => format!("restart, {}", millions(2 * sizes.restart_records)),
        }
    }

    /// Unit of the figure.
    pub fn unit(self) -> &'static str {
        match self {
            Self::OneP50 | Self::OneP99 | Self::DiskSync | Self::ManyP50 | Self::BenchAck => "ms",
            Self::BenchEndToEnd | Self::FollowerP99 | Self::FollowersP99 => "ms",
            Self::FollowerWrite | Self::FollowersWrite => "MiB/s",
            Self::ManyRate => "appends/s",
            Self::BenchWrite | Self::BenchCatchUp => "MiB/s",
            Self::CatchUpOne
            | Self::CatchUpOneSdk
            | Self::CatchUpInterleaved
            | Self::CatchUpCold => "MiB/s",
            Self::BatchRate => "records/s",
            Self::Resident | Self::ResidentHighest => "MiB",
            Self::CreateRate => "streams/s",
            Self::Restart | Self::RestartTwice => "s",
        }
    }

    /// What Esker is expected to reach.
    pub fn goal(self) -> Goal {
        let at_least = |must, aim| Goal::AtLeast { must, aim };
        let at_most = |must, aim| Goal::AtMost { must, aim };
        match self {
            Self::OneP50 => at_most(0.25, Aim::OverDiskSync(0.2)),
            Self::ManyRate => at_least(3.0, 5.0),
            Self::BenchWrite => at_least(1.5, 2.5),
            Self::BenchAck => at_most(0.5, Aim::Times(0.4)),
            Self::BenchCatchUp => at_least(1.0, 1.2),
            Self::BenchEndToEnd | Self::FollowerP99 | Self::FollowersP99 => {
                at_most(1.0, Aim::Times(0.5))
            }
            Self::BatchRate => at_least(2.0, 5.0),
            Self::CatchUpOne | Self::CatchUpOneSdk | Self::CatchUpInterleaved => at_least(1.0, 2.0),
            Self::CatchUpCold => at_least(1.0, 1.0),
            Self::Resident => at_most(0.5, Aim::None),
            Self::CreateRate => at_least(1.0, 2.0),
            Self::Restart | Self::RestartTwice => Goal::Under(2.0),
            Self::OneP99
            | Self::DiskSync
            | Self::ManyP50
            | Self::FollowerWrite
            | Self::FollowersWrite
            | Self::ResidentHighest => Goal::None,
        }
    }
}

impl Goal {
    /// The text in the table, for instance `≥ 3x (aim 5x)`.
    pub fn text(self) -> String {
        match self {
            Self::AtLeast { must, aim } => format!("≥ {must}x (aim {aim}x)"),
            Self::AtMost { must, aim } => match aim {
                Aim::None => format!("≤ {must}x"),
                Aim::Times(aim) => format!("≤ {must}x (aim {aim}x)"),
                Aim::OverDiskSync(ms) => format!("≤ {must}x (aim fdatasync + {ms} ms)"),
            },
            Self::Under(value) => format!("< {value} s"),
            Self::None => String::new(),
        }
    }

    /// Judges the figures of both servers; `disk_sync_ms` is the disk's own.
    pub fn judge(
        self,
        peer: Option<f64>,
        esker: Option<f64>,
        disk_sync_ms: Option<f64>,
    ) -> Verdict {
        let Some(esker) = esker else {
            return Verdict::Open;
        };
        let ratio = peer.map(|peer| esker / peer);
        let (met, aim) = match (self, ratio) {
            (Self::None, _) => return Verdict::Open,
            (Self::Under(value), _) => (esker < value, false),
            (_, None) => return Verdict::Open,
            (Self::AtLeast { must, aim }, Some(ratio)) => (ratio >= must, ratio >= aim),
            (Self::AtMost { must, aim }, Some(ratio)) => {
                let reached = match aim {
                    Aim::None => false,
                    Aim::Times(aim) => ratio <= aim,
                    Aim::OverDiskSync(ms) => disk_sync_ms.is_some_and(|sync| esker <= sync + ms),
                };
                (ratio <= must, reached)
            }
        };
        match (met, aim) {
            (true, true) => Verdict::Aim,
            (true, false) => Verdict::Met,
            (false, _) => Verdict::Missed,
        }
    }
}

impl Verdict {
    /// The text in the table.
    pub fn text(self) -> &'static str {
        match self {
            Self::Aim => "yes, with the aim",
            Self::Met => "yes",
            Self::Missed => "no",
            Self::Open => "",
        }
    }
}

/// One value of one figure.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The figure.
    pub metric: Metric,
    /// Its value, in the figure's unit.
    pub value: f64,
}

impl Reading {
    /// A reading.
    pub fn new(metric: Metric, value: f64) -> Self {
        Self { metric, value }
    }
}

/// The median of all readings of one figure.
pub fn median_of(metric: Metric, readings: &[Reading]) -> Option<f64> {
    let values: Vec<f64> = readings
        .iter()
        .filter(|reading| reading.metric == metric)
        .map(|reading| reading.value)
        .collect();
    stats::median(&values)
}

fn millions(records: usize) -> String {
    if records.is_multiple_of(1_000_000) {
        format!("{} million records", records / 1_000_000)
    } else {
        format!("{records} records")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_better_is_judged_by_the_ratio() {
        let goal = Metric::ManyRate.goal();
        let judge = |esker| goal.judge(Some(100.0), Some(esker), None);
        assert_eq!(judge(299.0), Verdict::Missed);
        assert_eq!(judge(300.0), Verdict::Met);
        assert_eq!(judge(500.0), Verdict::Aim);
    }

    #[test]
    fn the_aim_of_one_client_is_the_disk_and_a_little() {
        let goal = Metric::OneP50.goal();
        let judge = |esker| goal.judge(Some(8.0), Some(esker), Some(0.2));
        assert_eq!(judge(2.1), Verdict::Missed);
        assert_eq!(judge(1.9), Verdict::Met);
        assert_eq!(judge(0.4), Verdict::Aim);
    }

    #[test]
    fn an_absolute_goal_needs_no_peer() {
        let goal = Metric::Restart.goal();
        assert_eq!(goal.judge(None, Some(1.9), None), Verdict::Met);
        assert_eq!(goal.judge(None, Some(2.0), None), Verdict::Missed);
    }

    #[test]
    fn a_missing_figure_is_not_judged() {
        let goal = Metric::ManyRate.goal();
        assert_eq!(goal.judge(None, Some(1.0), None), Verdict::Open);
        assert_eq!(goal.judge(Some(1.0), None, None), Verdict::Open);
    }
}
