//! What the engine promises, without clocks, threads or disks.
//!
//! - [`disk`]: a log in memory, the part of a member that survives a crash;
//! - [`solo`]: a group of one, action by action;
//! - [`opening`]: what an engine makes of the log and the state that it finds, and of the floor;
//! - [`replay`]: a long replay in bounded memory;
//! - [`bounds`]: what an engine holds in memory, and reads at once;
//! - [`log_reads`]: entries that the host reads, while the engine goes on;
//! - [`halting`]: logs that cannot be read, or not understood;
//! - [`snapshots`]: hints, back-off, the guardrail, what is compacted;
//! - [`membership`], [`catching_up`]: single stories of several members, on [`cluster`];
//! - [`absent_members`]: the log that is kept for members that are away;
//! - [`joins`]: nodes that join, and are killed at any moment of it; several voters changed as one;
//! - [`confirmed_changes`]: when those who voted before a change are needed no more;
//! - [`elections`]: corners that raft-rs leaves to us;
//! - [`reading`]: reads that wait for what is applied;
//! - [`leftovers`]: what was fetched in vain and is not needed;
//! - [`versions`]: a leader whose snapshots another member cannot read;
//! - [`breaks`]: what other libraries promise and do not keep;
//! - [`histories`]: whole histories with snapshots, transfers and changes of membership, from a seed;
//! - [`network`]: three members and a network that loses, repeats and reorders, from a seed.

mod absent_members;
mod bounds;
mod breaks;
mod catching_up;
mod cluster;
mod confirmed_changes;
mod disk;
mod elections;
mod halting;
mod histories;
mod joins;
mod leftovers;
mod log_reads;
mod membership;
mod network;
mod opening;
mod reading;
mod replay;
mod snapshots;
mod solo;
mod three;
mod versions;

use std::fmt::Write as _;

use raft::Storage as _;

use super::*;
use crate::message::{Envelope, Payload, PeerMessage};
use disk::Disk;

/// The members with these numbers, all of them voters.
fn members(ids: &[u64]) -> Membership {
    Membership {
        voters: ids.iter().copied().map(NodeId).collect(),
        ..Membership::default()
    }
}

/// A message of consensus, as it arrives.
fn received(message: raft::eraftpb::Message) -> Event {
    let sender = Config::new(NodeId(message.from)).identity();
    let to = NodeId(message.to);
    Event::Receive(sender.seal(to, Payload::Raft(PeerMessage(message))))
}

/// The messages of consensus among those that are sent.
fn raft_messages(actions: &[Action]) -> Vec<&PeerMessage> {
    let mut all = Vec::new();
    for action in actions {
        if let Action::Send(envelopes) = action {
            all.extend(envelopes.iter().filter_map(|e| match &e.payload {
                Payload::Raft(message) => Some(message),
                _ => None,
            }));
        }
    }
    all
}

/// Opens member `id` of `of` on what `disk` and its host remember.
fn open(id: u64, of: &[u64], disk: &Disk, applied: u64) -> Result<Engine, OpenError> {
    open_with(Config::new(NodeId(id)), of, disk, applied)
}

fn open_with(
    mut config: Config,
    of: &[u64],
    disk: &Disk,
    applied: u64,
) -> Result<Engine, OpenError> {
    config.creates_cluster = disk.state().is_blank();
    Engine::open(
        config,
        disk.state(),
        Lsn(applied),
        &members(of),
        disk.reader(),
    )
}

fn propose(ticket: u64, command: &str) -> Event {
    Event::Propose {
        ticket: Ticket(ticket),
        command: command.as_bytes().to_vec(),
    }
}

/// A snapshot of everything up to `lsn`, of the engine's own history.
fn taken(engine: &Engine, lsn: u64) -> Event {
    Event::SnapshotTaken {
        last_included_index: Lsn(lsn),
        term: Term(engine.raw.store().term(lsn).unwrap_or(0)),
        peers: Some(engine.membership().clone()),
    }
}

/// Carries everything out at once, as a host with an instant disk and an instant state machine
/// would; returns the actions of all the steps that this took.
fn settle(engine: &mut Engine, disk: &Disk, event: Event) -> Vec<Action> {
    let mut done = Vec::new();
    let mut events = VecDeque::from([event]);
    while let Some(event) = events.pop_front() {
        for action in engine.step(event) {
            match &action {
                Action::Persist(persist) => {
                    disk.write(persist);
                    events.push_back(Event::Persisted {
                        number: persist.number,
                    });
                }
                Action::Apply(committed) => events.push_back(Event::Applied {
                    lsn: committed[committed.len() - 1].lsn,
                }),
                Action::Compact { floor } => disk.compact(*floor),
                Action::ReadLog(read) => events.push_back(disk.read(*read)),
                _ => {}
            }
            done.push(action);
        }
    }
    done
}

/// The numbers of the actions' [`Persist`]s.
fn numbers(actions: &[Action]) -> Vec<u64> {
    let number = |action: &Action| match action {
        Action::Persist(persist) => Some(persist.number),
        _ => None,
    };
    actions.iter().filter_map(number).collect()
}

/// The commands that the actions want applied.
fn commands(actions: &[Action]) -> Vec<String> {
    let mut commands = Vec::new();
    for action in actions {
        if let Action::Apply(committed) = action {
            let of = |entry: &Committed| entry.command.clone();
            commands.extend(committed.iter().filter_map(of));
        }
    }
    let text = |command: bytes::Bytes| String::from_utf8(command.to_vec()).unwrap();
    commands.into_iter().map(text).collect()
}

/// The actions in short, places as `lsn@term`.
fn outline(actions: &[Action]) -> String {
    let mut all = String::new();
    for action in actions {
        if !all.is_empty() {
            all.push_str(", ");
        }
        let _ = match action {
            Action::Persist(persist) => {
                let place = |e: &raft::eraftpb::Entry| format!("{}@{}", e.index, e.term);
                let places: Vec<_> = persist.entries.iter().map(place).collect();
                write!(all, "persist [{}]", places.join(" "))
            }
            Action::Apply(committed) => {
                let place = |e: &Committed| format!("{}@{}", e.lsn, e.term);
                let places: Vec<_> = committed.iter().map(place).collect();
                write!(all, "apply [{}]", places.join(" "))
            }
            Action::Accepted { ticket, lsn, term } => {
                write!(all, "accepted #{} at {lsn}@{term}", ticket.0)
            }
            Action::Rejected { ticket, reason } => {
                write!(all, "rejected #{}: {reason:?}", ticket.0)
            }
            Action::Became { role, term, .. } => write!(all, "became {role:?} in term {term}"),
            Action::Compact { floor } => write!(all, "compact to {}@{}", floor.lsn, floor.term),
            Action::SnapshotHint {
                last_included_index,
            } => write!(all, "hint at {last_included_index}"),
            Action::LogAlarm { entries } => write!(all, "alarm: {entries}"),
            Action::Send(messages) => write!(all, "send {}", messages.len()),
            Action::Halt { what } => write!(all, "halt: {what}"),
            other => write!(all, "{other:?}"),
        };
    }
    all
}
