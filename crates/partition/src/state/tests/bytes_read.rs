//! How many bytes of files the state store reads, whatever the number of runs.

use super::*;
use crate::ids::StreamId;
use crate::state::StateMeta;
use crate::streams::tests::bytes_read::{KIB, RUNS, cost, unmerged};
use crate::streams::tests::fixture::batches_of;

/// One commit in this many belongs to the agent that has few commits.
const SELDOM: u64 = 50;

/// A store with the same number of commits in each of several runs.
struct Commits {
    partition: Fixture,
    number: u64,
}

impl Commits {
    /// The commits write the keys in turn.
    fn new(runs: u64, commits_in_run: u64, keys: u64, value: usize) -> Commits {
        let mut partition = Fixture::new();
        unmerged(&partition);
        for run in 0..runs {
            for commit in 0..commits_in_run {
                let n = run * commits_in_run + commit;
                let mut key = key(&format!("key-{:04}", n % keys));
                if n.is_multiple_of(SELDOM) {
                    key.agent_id = "seldom".to_owned();
                }
                let value = format!("\"{}\"", "v".repeat(value));
                partition.commit(vec![write(&key, &value)]);
            }
            partition.flush();
        }
        // Opening a file reads its index, once.
        partition.read("none", At::Latest).unwrap();
        Commits {
            partition,
            number: runs * commits_in_run,
        }
    }

    fn meta(&self) -> StateMeta {
        self.partition.state_reader().meta()
    }

    /// Bytes of batches in the stream of commits, after `from` and up to `to`.
    fn bytes_of_commits(&self, from: u64, to: u64) -> u64 {
        let part = self.partition.partition_db();
        let stream = StreamId(self.meta().stream);
        let batches = batches_of(&part, stream).into_iter();
        let of_range = batches.filter(|(first, _)| (from..to).contains(first));
        of_range.map(|(_, value)| 24 + value.len() as u64).sum()
    }

    /// Does a replay; returns the number of commits.
    fn replay(&self, agent: Option<(&str, &str)>) -> u64 {
        let reader = self.partition.state_reader();
        let (mut at, mut seen) = (0, 0);
        while at < self.number {
            let (commits, up_to) = reader
                .commits(agent, at, u64::MAX, 256, 1024 * KIB as usize)
                .unwrap();
            seen += commits.len() as u64;
            at = up_to;
        }
        seen
    }
}

/// Commits in a run, and bytes of their values: many to a block, one to some blocks, and large ones.
const SHAPES: [(u64, usize); 3] = [(400, 100), (100, 8 * KIB as usize), (2, 700 * KIB as usize)];

#[test]
fn a_replay_reads_at_most_one_and_a_half_bytes_for_one_whatever_the_number_of_runs() {
    for (commits_in_run, value) in SHAPES {
        for runs in RUNS {
            let commits = Commits::new(runs, commits_in_run, 64, value);
            let stored = commits.bytes_of_commits(0, commits.number);
            let check = |agent: Option<&str>, of: u64, stored: u64| {
                let agent = agent.map(|agent| ("default", agent));
                let (seen, read) = cost(|| commits.replay(agent));
                assert_eq!(seen, of);
                let bound = stored * 3 / 2 + 64 * KIB;
                assert!(
                    read <= bound,
                    "{read} bytes for {stored} of {runs} runs, values of {value}, agent {agent:?}"
                );
            };
            let seldom = commits.number.div_ceil(SELDOM);
            check(None, commits.number, stored);
            check(Some("agent"), commits.number - seldom, stored);
            // Each commit shares its block with others.
            let block = value as u64 + 8 * KIB;
            check(Some("seldom"), seldom, seldom * block);
        }
    }
}

#[test]
fn forgetting_versions_reads_each_once_whatever_the_number_of_runs_and_commands() {
    const KEEP: u64 = 3;
    for (commits_in_run, value) in SHAPES {
        for (runs, keys) in RUNS.into_iter().flat_map(|runs| [(runs, 1), (runs, 64)]) {
            let mut it = Commits::new(runs, commits_in_run, keys, value);
            let stored = it.bytes_of_commits(0, it.number);
            let (mut commands, mut read) = (0, 0);
            while it.meta().versions_cut < it.number {
                let prune = StatePrune {
                    versions_to: it.number,
                    keep_versions: KEEP,
                    history_below: 0,
                    at_ms: 9_000,
                };
                read += cost(|| it.partition.prune(prune)).1;
                commands += 1;
            }
            // The commits, and as many bytes of entries that they replaced. Each command reads the
            // versions of a key that are kept.
            let kept = commands * keys.min(256) * KEEP * (value as u64 + 100);
            let bound = (2 * stored + kept) * 3 / 2 + 256 * KIB;
            assert!(
                read <= bound,
                "{read} bytes for {stored} of {runs} runs, {keys} keys, values of {value}"
            );
        }
    }
}

#[test]
fn a_store_is_rebuilt_by_reading_its_commits_once_whatever_the_number_of_runs() {
    for (commits_in_run, value) in SHAPES {
        for runs in RUNS {
            let commits = Commits::new(runs, commits_in_run, 64, value);
            let stored = commits.bytes_of_commits(0, commits.number);
            let part = commits.partition.partition_db();
            let (mut rebuild, read) = cost(|| part.rebuild_state().unwrap());
            let entry = value as u64 + 4 * KIB;
            let blocks = runs * 4 * KIB;
            assert!(
                read <= 2 * entry + blocks,
                "{read} bytes of {runs} runs, values of {value}"
            );
            let (_, read) = cost(|| {
                rebuild.fold(0, commits.number).unwrap();
                rebuild.finish(commits.number).unwrap()
            });
            // The entries that they replace are read as well, unless they are still in memory.
            let bound = 2 * stored * 3 / 2 + blocks + 64 * KIB;
            assert!(
                read <= bound,
                "{read} bytes for {stored} of {runs} runs, values of {value}"
            );
        }
    }
}
