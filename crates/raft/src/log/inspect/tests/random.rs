//! Random damage: the inspection never panics, and never calls a loss of acknowledged groups a
//! crash.

use proptest::prelude::*;

use super::*;

/// One way to damage bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip { bit: u8 },
    Noise { len: usize, byte: u8 },
    Zero { len: usize },
    Truncate,
    Extend { len: usize, byte: u8 },
}

impl Damage {
    /// Applies it to `bytes[at..]`, up to `end`.
    fn apply(&self, bytes: &mut Vec<u8>, at: usize, end: usize) {
        match *self {
            Self::Flip { bit } => bytes[at] ^= 1 << bit,
            Self::Noise { len, byte } => {
                for (i, b) in bytes[at..end.min(at + len)].iter_mut().enumerate() {
                    *b ^= byte.wrapping_add((i as u8).wrapping_mul(31));
                }
            }
            Self::Zero { len } => bytes[at..end.min(at + len)].fill(0),
            Self::Truncate => bytes.truncate(at),
            Self::Extend { len, byte } => bytes.extend(std::iter::repeat_n(byte, len)),
        }
    }
}

fn in_place() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..8u8).prop_map(|bit| Damage::Flip { bit }),
        (1..9000usize, any::<u8>()).prop_map(|(len, byte)| Damage::Noise { len, byte }),
        (1..9000usize).prop_map(|len| Damage::Zero { len }),
    ]
}

fn any_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => in_place(),
        1 => Just(Damage::Truncate),
        1 => (1..9000usize, any::<u8>()).prop_map(|(len, byte)| Damage::Extend { len, byte }),
    ]
}

fn example() -> &'static (Files, Files) {
    static EXAMPLE: std::sync::OnceLock<(Files, Files)> = std::sync::OnceLock::new();
    EXAMPLE.get_or_init(|| log_of(GROUPS))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    /// As long as the last batch is there to witness it, no damage to what was acknowledged
    /// passes as clean, or as torn.
    #[test]
    fn damage_before_the_last_batch_is_never_taken_for_a_crash(
        crashed: bool,
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), in_place()), 1..4),
    ) {
        let original = if crashed { &example().0 } else { &example().1 };
        let mut files = original.clone();
        for (file, place, damage) in &damages {
            let append = files.append();
            let i = *file.get(&append);
            let end = if i == original.last_append() {
                original.batches(i).last().unwrap().0
            } else {
                original.0[i].1.len()
            };
            let at = place.index(end);
            damage.apply(&mut files.0[i].1, at, end);
        }
        prop_assume!(files.0 != original.0);
        let (_keep, dir) = scratch();
        files.write(&dir);
        let found = look(&dir);
        prop_assert!(matches!(found, Err(InspectError::Rot { .. })), "{found:?}");
    }

    /// Whatever happens to the last file: no panic, and what passes is a log that raft-engine
    /// opens without cutting, with every group up to the first damage.
    #[test]
    fn what_passes_is_a_log_up_to_the_first_damage(
        crashed: bool,
        damages in prop::collection::vec((any::<prop::sample::Index>(), any_damage()), 1..4),
    ) {
        let original = if crashed { &example().0 } else { &example().1 };
        let last = original.last_append();
        let mut files = original.clone();
        for (place, damage) in &damages {
            let bytes = &mut files.0[last].1;
            if bytes.is_empty() {
                continue;
            }
            let (at, end) = (place.index(bytes.len()), bytes.len());
            damage.apply(bytes, at, end);
        }
        let (_keep, dir) = scratch();
        files.write(&dir);
        if let Ok(found) = look(&dir) {
            found.cut().unwrap();
            let (new, old) = (&files.0[last].1, &original.0[last].1);
            let intact = original.batches(last).iter().take_while(|(start, len)| {
                new.get(..start + len) == Some(&old[..start + len])
            }).count();
            let lost = original.batches(last).len() - intact;
            prop_assert_eq!(groups_in(&dir, GROUPS), GROUPS - lost as u64);
            prop_assert_eq!(look(&dir).unwrap().torn, vec![]);
        }
    }
}
