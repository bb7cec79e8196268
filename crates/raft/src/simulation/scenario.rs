//! What a seed draws: the number of members, the limits, the rates of faults.

use rand::Rng;
use rand::rngs::StdRng;

use super::mutants::Mutant;
use crate::engine::{Config, KeptForAbsent};
use crate::ids::NodeId;
use crate::transfer::{ReceiverConfig, SenderConfig};

/// Bytes of a chunk: a snapshot of some hundred commands has many chunks.
pub const CHUNK: u32 = 32;
/// Most bytes requested and not yet written.
pub const WINDOW: u64 = 4 * CHUNK as u64;
/// More bytes than any run writes.
pub const KEPT_BYTES: u64 = 1 << 30;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// At the foundation.
    pub voters: u64,
    /// Snapshots are files; else bytes.
    pub files: bool,
    /// Duration of the phase with faults.
    pub duration: u64,
    /// Of a thousand messages.
    pub lost: u32,
    pub doubled: u32,
    pub late: u32,
    pub corrupted: u32,
    /// Longest time between two actions of `faults`.
    pub pause: u64,
    /// One action in so many is a crash, a cut, a change of the membership.
    pub crashes: u32,
    pub cuts: u32,
    pub changes: u32,
    pub hint_entries: u64,
    pub hint_bytes: u64,
    pub guardrail: u64,
    pub kept_for_peers: u64,
    pub apply_backlog: u64,
    pub pending: u64,
    /// Most bytes of a command beside its number.
    pub padding: usize,
}

impl Scenario {
    pub fn draw(rng: &mut StdRng) -> Scenario {
        let hint_entries = [0, 6, 12, 25, 60][rng.random_range(0..5)];
        let hint_bytes = [0, 0, 400, 1500][rng.random_range(0..4)];
        let guardrail = match rng.random_range(0..3) {
            0 => hint_entries + rng.random_range(5..40),
            _ => 0,
        };
        let calm = rng.random_ratio(1, 4);
        let per_mille = |rng: &mut StdRng, most| match calm {
            true => 0,
            false => rng.random_range(0..=most),
        };
        Scenario {
            seed: rng.random(),
            voters: [1, 3, 3, 3, 5][rng.random_range(0..5)],
            files: rng.random(),
            duration: rng.random_range(1200..4000),
            lost: per_mille(rng, 80),
            doubled: per_mille(rng, 60),
            late: per_mille(rng, 40),
            corrupted: per_mille(rng, 20),
            pause: rng.random_range(4..12),
            crashes: [60, 120, 400][rng.random_range(0..3)],
            cuts: [40, 100, 1000][rng.random_range(0..3)],
            changes: [25, 50, 200][rng.random_range(0..3)],
            hint_entries,
            hint_bytes,
            guardrail,
            kept_for_peers: [200, 1000, 4000, 1 << 30][rng.random_range(0..4)],
            apply_backlog: [100, 500, 1 << 20][rng.random_range(0..3)],
            pending: [8, 64, 1024][rng.random_range(0..3)],
            padding: [1, 40, 200][rng.random_range(0..3)],
        }
    }

    pub fn config(&self, id: u64, mutant: Option<Mutant>) -> Config {
        let mut config = Config::new(NodeId(id));
        config.seed = self.seed ^ id;
        config.snapshot_hint_threshold_entries = self.hint_entries;
        config.snapshot_hint_threshold_bytes = self.hint_bytes;
        config.max_log_entries = self.guardrail;
        config.snapshot_backoff_ticks = 2..=16;
        config.max_bytes_kept_for_peers = match mutant {
            Some(Mutant::CompactUnderTransfer) => 0,
            _ => self.kept_for_peers,
        };
        config.kept_for_absent = match mutant {
            Some(Mutant::CompactUnderAbsence) => KeptForAbsent::default(),
            _ => self.kept_for_absent(mutant),
        };
        config.offer_retry_ticks = 4;
        config.transfer_idle_ticks = 100;
        config.max_apply_backlog_bytes = self.apply_backlog;
        // Not drawn from the generator: it does not change a run.
        config.max_log_bytes_in_memory = match mutant {
            // It reports entries as durable that are not, and so could not be read.
            Some(Mutant::AcknowledgeBeforeSync) => u64::MAX,
            _ => [1, 1000, 1 << 20][(self.seed % 3) as usize],
        };
        config.max_pending_proposals = self.pending;
        config
    }

    /// What leaders are to keep for members that are away: in most runs nothing, so that members need snapshots. It is not
    /// drawn from the generator, so all else is drawn as without it.
    pub fn kept_for_absent(&self, mutant: Option<Mutant>) -> KeptForAbsent {
        match (mutant, self.seed / 3 % 8) {
            (Some(Mutant::CompactUnderAbsence), _) | (None, 0) => KeptForAbsent {
                bytes: KEPT_BYTES,
                entries: 400,
                ticks: 20,
            },
            (None, 1) => KeptForAbsent {
                bytes: 1000,
                entries: 1000,
                ticks: 200,
            },
            _ => KeptForAbsent::default(),
        }
    }

    /// Time between two ticks of a host's clock: clocks differ, and some are slow.
    pub fn period(&self, rng: &mut StdRng) -> u64 {
        match rng.random_range(0..8) {
            0 => rng.random_range(14..=20),
            _ => rng.random_range(8..=12),
        }
    }
}

pub fn receiver() -> ReceiverConfig {
    ReceiverConfig {
        chunk_bytes: CHUNK,
        window_bytes: WINDOW,
        chunk_deadline_ticks: 4,
        progress_deadline_ticks: 60,
        retry_ticks: 3,
    }
}

pub fn sender() -> SenderConfig {
    SenderConfig {
        max_transfers: 2,
        max_bytes_in_flight: 6 * u64::from(CHUNK),
        idle_ticks: 60,
    }
}
