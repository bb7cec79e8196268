//! A simulation of groups: engines, hosts, disks and a network, all of them unreliable, driven by one seed
//! on one thread. The same seed gives the same run, to the last byte.
//!
//! | module | what it is |
//! |---|---|
//! | `world` | time, the queue of events, the first broken rule |
//! | `scenario` | what a seed draws: members, limits, rates of faults |
//! | `host` | a process: engine, state machine, log writer; crashes and restarts |
//! | `absences` | what a leader keeps for members that are away |
//! | `departures` | nodes that are stopped for good after a change of the membership |
//! | `apply` | applying entries, acknowledging proposals |
//! | `disk`, `sync` | the log: what is durable, what is not yet, and syncs |
//! | `state` | the state machine, and its snapshots as bytes or files |
//! | `snapshots` | taking snapshots, failing to, installing them |
//! | `transfers` | fetching and sending snapshots |
//! | `network` | loss, repetition, reordering, delay, cuts, corruption, foreign messages |
//! | `faults` | the faults and requests, drawn at random |
//! | `liveness` | the end of a run: progress without faults |
//! | `oracle` | the rules that must hold |
//! | `mutants` | hosts that make one mistake each |
//!
//! **What happens.** Clocks tick at different speeds. Messages are lost, repeated, reordered, late by up to
//! seventy ticks (so that messages of an ended process arrive), corrupted, or cut off in one direction or
//! both; messages of foreign clusters arrive. Unsynced writes are lost at a crash, or some of them; disks
//! are slow, or full for a while; a sync fails and the process ends; files change, vanish, lose their
//! tails. Hosts apply slowly, take snapshots on hints and by themselves, quickly and slowly, and fail to;
//! they fail to install. Processes crash at any moment, most often while they fetch or install, and restart
//! from their disks. Voters lose their disks (never so many at once that a majority would be lost), and
//! must not vote again. Members are added, promoted, removed; leadership is transferred. Once a leader has a change
//! confirmed, nodes that were removed are stopped for good, and the leader may lose its disk in that moment, and all
//! that it has sent.
//!
//! **What is checked**, at the first place where it can fail: one leader a term; entries of one LSN and
//! term are the same everywhere, and so are those before; what is committed never changes; commit is never
//! ahead of what is durable on a majority; every state is the fold of the committed commands, with the
//! digest and the membership that all members have at that LSN, also after a restart or an install;
//! acknowledged proposals are there in the end, each once, and superseded ones nowhere; no read misses what
//! was seen before it began;
//! the log never begins after what is durable of the state; it stays behind a transfer, and behind a member
//! that is away, within the limits;
//! no byte is fetched twice but those that a break took; and once faults stop, there is progress within a
//! bounded time.
//!
//! **What is not simulated**: unreadable logs (tested with the engine), the bytes of the log's files
//! (tested with the log), threads and sockets (tested with the runtime).
//!
//! A failure prints the command that repeats it:
//!
//! ```text
//! ESKER_SEED=1234 cargo test --release -p esker-raft simulation::tests::replay -- --nocapture
//! ```
//!
//! With `ESKER_SIM_TRACE=1` it prints every event and action. `make soak-raft` runs further seeds
//! (`ESKER_SEEDS`: how many, `ESKER_SEED`: from which on, `ESKER_SEED_SECONDS`: for how long).

#![deny(clippy::disallowed_methods)]

mod absences;
mod apply;
mod departures;
mod disk;
mod faults;
mod host;
mod liveness;
mod mutants;
mod network;
mod oracle;
mod scenario;
mod snapshots;
mod state;
mod sync;
mod tests;
mod transfers;
mod world;

use mutants::Mutant;
use world::{Reached, World};

/// A complete run: a phase with faults, then one without.
fn run(seed: u64, mutant: Option<Mutant>) -> Result<Reached, String> {
    finish(World::new(seed, mutant)).0
}

fn finish(mut world: World) -> (Result<Reached, String>, u128) {
    world.run_until(world.scenario.duration);
    if world.broken.is_none() {
        world.settle();
    }
    let hash = world.trace_hash();
    if let Some(what) = world.broken {
        return (Err(what), hash);
    }
    let mut reached = world.reached;
    reached.terms = world.oracle.terms();
    reached.promoted_later = world.oracle.promoted_later();
    reached.acknowledged = world.oracle.acknowledged();
    reached.superseded = world.oracle.count_superseded();
    (Ok(reached), hash)
}
