//! Directories that hold files of several copies of one log, as a backup leaves them that is copied over
//! a newer directory, or one of another machine: never a panic, and never a log that lacks what was
//! acknowledged when its newest file was written.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::log::inspect::fixture::Files;

/// What a group held at one time.
#[derive(Clone, Debug)]
struct Group {
    tag: Vec<u8>,
    /// Every entry of a beginning has this term.
    term: u64,
    start: u64,
    last: u64,
}

/// The files of the log at one time, and what was acknowledged then.
#[derive(Clone)]
struct Copy {
    files: Files,
    groups: Vec<Group>,
    /// What groups held before they began anew, and since the copy before.
    ended: Vec<(usize, Group)>,
}

/// The last group is written to seldom: what it has is soon in the rewrite queue alone.
const GROUPS: usize = 4;

struct Life {
    open: Open,
    groups: Vec<Group>,
    /// What groups held before they began anew.
    ended: Vec<(usize, Group)>,
    salt: u64,
}

impl Life {
    fn on(dir: &Path, groups: Vec<Group>, salt: u64) -> Life {
        let open = Open::new(dir, &Faults::new());
        Life {
            open,
            groups,
            ended: Vec::new(),
            salt,
        }
    }

    fn begin(&mut self, id: usize, start: u64) {
        self.ended.push((id, self.groups[id].clone()));
        let group = &mut self.groups[id];
        let term = group.term + 1;
        let tag = format!("{id}-{term}-{}", self.salt).into_bytes();
        *group = Group {
            tag,
            term,
            start,
            last: start,
        };
        let tag = &group.tag;
        let begun = self
            .open
            .log
            .begin_group(GroupId(id as u64), floor(start, term), tag);
        begun.unwrap();
    }

    fn append(&mut self, id: usize, count: u64, padding: usize) {
        let group = &mut self.groups[id];
        let padding = padding + self.salt as usize;
        let entry = |lsn| Entry {
            index: lsn,
            term: group.term,
            data: content(lsn, group.term, padding).into(),
            ..Entry::default()
        };
        let persist = Persist {
            number: 1,
            restart: None,
            entries: (group.last + 1..=group.last + count).map(entry).collect(),
            // As a group of one has it: what was appended before is committed.
            hard_state: HardState {
                term: group.term,
                vote: 1,
                commit: group.last,
                ..HardState::default()
            },
        };
        let writer = &self.open.writer;
        writer.persist(GroupId(id as u64), persist, Arc::new(Nobody));
        assert!(writer.flush(WAIT_TIMEOUT));
        group.last += count;
    }

    fn step(&mut self, rng: &mut StdRng) {
        let id = match rng.random_range(0..40) {
            0 => GROUPS - 1,
            n => n % (GROUPS - 1),
        };
        match rng.random_range(0..100) {
            0..70 => self.append(id, rng.random_range(1..12), rng.random_range(0..900)),
            70..82 => {
                let group = &mut self.groups[id];
                let lsn = rng.random_range(group.start..=group.last);
                // Its last entries stay, so that there is something to copy.
                let lsn = lsn.min(group.last.saturating_sub(20)).max(group.start);
                group.start = lsn;
                self.open
                    .compact(id as u64, floor(lsn, self.groups[id].term));
            }
            82..84 => {
                let start = self.groups[id].last + rng.random_range(0..30);
                self.begin(id, start);
            }
            _ => drop(self.open.log.purge().unwrap()),
        }
    }

    fn copy(&mut self, dir: &Path) -> Copy {
        Copy {
            files: Files::read(&config(dir).dir),
            groups: self.groups.clone(),
            ended: std::mem::take(&mut self.ended),
        }
    }
}

/// Three copies of one log, at different times; from the last one on also of what another machine made
/// of it, if that is asked for.
fn copies(rng: &mut StdRng, forked: bool) -> Vec<Copy> {
    let keep = tempfile::tempdir().unwrap();
    let group = Group {
        tag: Vec::new(),
        term: 0,
        start: 0,
        last: 0,
    };
    let mut life = Life::on(keep.path(), vec![group; GROUPS], 0);
    (0..GROUPS).for_each(|id| life.begin(id, 0));
    let mut copies = Vec::new();
    for time in 0..3 {
        for _ in 0..rng.random_range(5..60) {
            life.step(rng);
        }
        copies.push(life.copy(keep.path()));
        if rng.random_bool(0.3) {
            let groups = life.groups.clone();
            life.open.close();
            life = Life::on(keep.path(), groups, 0);
        }
        if forked && time < 2 {
            let other = tempfile::tempdir().unwrap();
            let copy = copies[copies.len() - 1].clone();
            copy.files.write(&config(other.path()).dir);
            let mut fork = Life::on(other.path(), copy.groups, time + 1);
            for _ in 0..rng.random_range(10..100) {
                fork.step(rng);
            }
            copies.push(fork.copy(other.path()));
            fork.open.close();
        }
    }
    life.open.close();
    copies
}

fn without_padding(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    &bytes[..end.map_or(0, |i| i + 1)]
}

/// A directory that has each file of any copy as one of them has it, or not at all, or cut; and what was
/// acknowledged, at least, when its newest append file was as it is.
fn mix(rng: &mut StdRng, copies: &[Copy]) -> (Files, Vec<Group>) {
    let mut names: Vec<&String> = copies
        .iter()
        .flat_map(|copy| copy.files.0.iter().map(|(name, _)| name))
        .collect();
    names.sort();
    names.dedup();
    // Mostly a copy over another, rarely any file as any copy has it.
    let preferred = rng.random_range(0..copies.len());
    let stray = [0.0, 0.1, 0.5][rng.random_range(0..3)];
    let missing = [0.0, 0.0, 0.0, 0.1][rng.random_range(0..4)];
    // Files before these are gone, or those from there on.
    let mut bound = |name: &str| {
        let names = names.iter().filter(|other| other[16..] == name[16..]);
        names
            .clone()
            .nth(rng.random_range(0..names.count()))
            .unwrap()
            .to_string()
    };
    let first = [bound(names[0]), bound(names.last().unwrap())];
    let end = [bound(names[0]), bound(names.last().unwrap())];
    let (from_first, to_end) = (rng.random_bool(0.7), rng.random_bool(0.2));
    let mut mixed = Files(Vec::new());
    for name in names {
        let is_of = |bound: &&String| bound[16..] == name[16..];
        let too_old = from_first && first.iter().filter(is_of).any(|first| name < first);
        let too_new = to_end && end.iter().filter(is_of).any(|end| name > end);
        if too_old || too_new {
            continue;
        }
        let of = |copy: &Copy| {
            let found = copy.files.0.iter().find(|(other, _)| other == name);
            found.map(|(_, bytes)| bytes.clone())
        };
        let any = copies[rng.random_range(0..copies.len())].clone();
        let bytes = match rng.random_bool(stray) {
            true => of(&any),
            // What the preferred copy does not have stays as another has it.
            false => of(&copies[preferred]).or_else(|| copies.iter().rev().find_map(of)),
        };
        if let Some(bytes) = bytes
            && !rng.random_bool(missing)
        {
            mixed.0.push((name.clone(), bytes));
        }
    }
    let newest = |files: &Files| {
        let mut newest = files.0.iter().rev();
        let (name, bytes) = newest.find(|(name, _)| name.ends_with(".raftlog"))?;
        Some((name.clone(), without_padding(bytes).to_vec()))
    };
    let written_last = newest(&mixed);
    let as_of = copies
        .iter()
        .find(|copy| newest(&copy.files) == written_last);
    let at_least = as_of.map(|copy| copy.groups.clone());
    if rng.random_bool(0.1)
        && let Some(i) = (!mixed.0.is_empty()).then(|| rng.random_range(0..mixed.0.len()))
    {
        let bytes = &mut mixed.0[i].1;
        bytes.truncate(rng.random_range(0..=bytes.len()));
        // A newest file that was cut is an older one, or a torn one.
        if newest(&mixed) != written_last {
            return (mixed, Vec::new());
        }
    }
    (mixed, at_least.unwrap_or_default())
}

/// Opens the mixture, reads all of it, writes on, purges, and opens it again. Whether it was accepted.
///
/// # Panics
///
/// The log has something else than its groups held at one time, or less than `at_least`.
fn use_it(files: &Files, at_least: &[Group], histories: &[Vec<Group>]) -> Result<(), LogError> {
    let keep = tempfile::tempdir().unwrap();
    files.write(&config(keep.path()).dir);
    let (log, _) = SharedLog::open(config(keep.path()), Faults::new())?;
    let mut states = Vec::new();
    for id in 0..GROUPS {
        let state = log.state(GroupId(id as u64))?;
        if state.tag.is_none() {
            // Whoever begins each group with a tag knows by that that the log is incomplete.
            return Err(log.error(format!("group {id} is missing")));
        }
        states.push(state);
    }
    let writer = LogWriter::start(&log).unwrap();
    let mut life = Life {
        open: Open { log, writer },
        groups: Vec::new(),
        ended: Vec::new(),
        salt: 0,
    };
    for (id, state) in states.iter().enumerate() {
        let found = life.open.found(id as u64);
        let tag = state.tag.clone().unwrap_or_default();
        let held = histories[id].iter().filter(|group| group.tag == tag);
        let (term, most) = held
            .map(|group| (group.term, group.last))
            .max()
            .unwrap_or((0, 0));
        assert!(found.last() <= most, "group {id} ends at {found:?}");
        for (lsn, of) in &found.entries {
            assert_eq!(*of, term, "group {id} has entry {lsn} of another beginning");
        }
        if let Some(least) = at_least.get(id) {
            let enough = if least.tag == tag {
                found.last() >= least.last
            } else {
                term > least.term
            };
            assert!(enough, "group {id}: {found:?}, acknowledged were {least:?}");
        }
        life.groups.push(Group {
            tag,
            term: found.term.max(term),
            start: found.start.0,
            last: found.last(),
        });
    }
    for _ in 0..3 {
        for id in 0..GROUPS {
            life.append(id, 5, 2000);
            let (last, term) = (life.groups[id].last, life.groups[id].term);
            let start = last.saturating_sub(7);
            if start > life.groups[id].start {
                life.groups[id].start = start;
                life.open.compact(id as u64, floor(start, term));
            }
        }
        life.open.log.purge().unwrap();
    }
    life.open.close();
    let open = Open::new(keep.path(), &Faults::new());
    for (id, group) in life.groups.iter().enumerate() {
        assert_eq!(open.found(id as u64).last(), group.last, "group {id}");
    }
    open.close();
    Ok(())
}

fn search(seeds: std::ops::Range<u64>, forked: bool) -> (u32, u32) {
    let (mut accepted, mut refused) = (0, 0);
    for seed in seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let copies = copies(&mut rng, forked);
        let histories: Vec<Vec<Group>> = (0..GROUPS)
            .map(|id| {
                let ended = copies.iter().flat_map(|copy| &copy.ended);
                let ended = ended.filter(|(of, _)| *of == id).map(|(_, group)| group);
                let held = copies.iter().map(|copy| &copy.groups[id]);
                held.chain(ended).cloned().collect()
            })
            .collect();
        for round in 0..20 {
            let (files, at_least) = mix(&mut rng, &copies);
            let at_least = if forked { Vec::new() } else { at_least };
            let used = catch_unwind(AssertUnwindSafe(|| use_it(&files, &at_least, &histories)));
            match used {
                Ok(Ok(())) => accepted += 1,
                Ok(Err(error)) => {
                    assert!(error.is_damage(), "seed {seed}, {round}: {error}");
                    assert!(!error.is_unreadable(), "seed {seed}, {round}: {error}");
                    refused += 1;
                }
                Err(_) => panic!("seed {seed}, round {round}"),
            }
        }
    }
    (accepted, refused)
}

fn search_at_once(count: u64, forked: bool) {
    let at_once = 4;
    let (accepted, refused) = std::thread::scope(|scope| {
        let part = |n| move || search(n * count / at_once..(n + 1) * count / at_once, forked);
        let threads: Vec<_> = (0..at_once).map(|n| scope.spawn(part(n))).collect();
        let all = threads.into_iter().map(|t| t.join().unwrap());
        all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    assert!(
        accepted > 0 && refused > 0,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn files_of_older_copies_among_newer_ones_never_cost_what_was_acknowledged_without_a_word() {
    search_at_once(24, false);
}

#[test]
fn files_of_another_machine_s_copy_never_lead_to_a_panic() {
    search_at_once(24, true);
}
