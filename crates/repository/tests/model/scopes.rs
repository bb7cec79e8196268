//! The scopes: small enough to be explored completely, large enough to need the rule that they test.
//!
//! Letters are contents of files: snapshots that share a letter could share an SST.

use crate::scope::{Checkpoint, Reach, Scope};
use crate::state::{Ids, Phase, State, WRITERS, ids_of, members, writer_of};

const A: u8 = 0b001;
const B: u8 = 0b010;
const AB: u8 = 0b011;
const BC: u8 = 0b110;

fn writer(contents: u8, lsn: u8) -> Checkpoint {
    Checkpoint {
        contents,
        lsn,
        lineage: 0,
        retries: 0,
        twin_of: None,
        incarnation: 0,
    }
}

impl Checkpoint {
    fn retries(self, retries: u8) -> Self {
        Self { retries, ..self }
    }

    fn of_lineage(self, lineage: u8) -> Self {
        Self { lineage, ..self }
    }

    fn of_incarnation(self, incarnation: u8) -> Self {
        Self {
            incarnation,
            ..self
        }
    }

    fn twin_of(self, w: usize) -> Self {
        Self {
            twin_of: Some(w),
            ..self
        }
    }
}

fn scope(writers: &[Checkpoint], reaches: &[Reach]) -> Scope {
    Scope {
        writers: writers.to_vec(),
        num_retained: 1,
        sweeper: true,
        repairs: true,
        reaches: reaches.to_vec(),
        ..Scope::default()
    }
}

/// Intents are fenced at any time, and each writer may start once more.
pub fn fencing() -> Scope {
    let writers = [writer(A, 1).retries(1), writer(AB, 2).retries(1)];
    Scope {
        fencing: true,
        ..scope(
            &writers,
            &[EVERYBODY_COMMITS, A_KEY_IS_SHARED, AN_UPLOAD_IS_SWEPT],
        )
    }
}

/// A writer reuses files of a snapshot that another commit removes meanwhile.
pub fn reuse() -> Scope {
    let writers = [writer(A, 1), writer(AB, 3), writer(B, 2)];
    scope(
        &writers,
        &[
            EVERYBODY_COMMITS,
            A_KEY_IS_SHARED,
            AN_EVICTION_COMPLETES,
            A_FURTHER_ID_COMMITS,
        ],
    )
}

/// The answers of any two swaps are lost: these are applied at once, late or never.
pub fn ambiguity() -> Scope {
    let writers = [writer(A, 1).retries(1), writer(AB, 2).retries(1)];
    let reaches = [
        EVERYBODY_COMMITS,
        A_COMMIT_GOES_UNNOTICED,
        A_COMMIT_IS_CUT_OFF_UNNOTICED,
    ];
    Scope {
        lost_answers: 2,
        ..scope(&writers, &reaches)
    }
}

/// Two snapshots are retained, and uploads are completed in any order.
pub fn retention() -> Scope {
    let writers = [writer(A, 1), writer(AB, 3), writer(B, 2), writer(A, 4)];
    let reaches = [
        EVERYBODY_COMMITS,
        A_KEY_IS_SHARED,
        AN_EVICTION_COMPLETES,
        A_WRITER_IS_REFUSED,
    ];
    Scope {
        num_retained: 2,
        ..scope(&writers, &reaches)
    }
}

/// Two snapshots are retained, and all have the same LSN.
pub fn ties() -> Scope {
    let writers = [writer(A, 1), writer(AB, 1), writer(B, 1)];
    Scope {
        num_retained: 2,
        ..scope(&writers, &[EVERYBODY_COMMITS, AN_EVICTION_COMPLETES])
    }
}

/// The deletes of retention fail, and there is no sweep.
pub fn failing_deletes() -> Scope {
    let writers = [writer(AB, 1), writer(BC, 3), writer(A, 2), writer(B, 4)];
    let reaches = [EVERYBODY_COMMITS, A_KEY_IS_SHARED, AN_EVICTION_COMPLETES];
    Scope {
        sweeper: false,
        failing_deletes: true,
        leftovers_are_named: true,
        ..scope(&writers, &reaches)
    }
}

/// Two concurrent restores.
pub fn pins() -> Scope {
    let writers = [writer(A, 1), writer(AB, 3), writer(B, 2)];
    Scope {
        restores: 2,
        ..scope(&writers, &[EVERYBODY_COMMITS, A_PINNED_SNAPSHOT_IS_CUT_OFF])
    }
}

/// Two lossy restores try to fork, the stale lineage continues to write, a restore reads an abandoned
/// snapshot, and at the end that is pruned.
pub fn forks() -> Scope {
    let writers = [
        writer(A, 1),
        writer(AB, 2).retries(1),
        writer(A, 3).of_lineage(1),
        writer(B, 3).of_lineage(2),
    ];
    let reaches = [
        A_NEW_LINEAGE_COMMITS,
        AN_ABANDONED_SNAPSHOT_IS_PINNED,
        A_COMMIT_GOES_UNNOTICED,
    ];
    Scope {
        forks: 2,
        fork_lsn: 1,
        pruning: true,
        restores: 1,
        lost_answers: 1,
        ..scope(&writers, &reaches)
    }
}

/// Any writer restarts once, also while its swap is in flight, and may be fenced.
pub fn restarts() -> Scope {
    let writers = [writer(A, 1).retries(1), writer(AB, 2)];
    let reaches = [EVERYBODY_COMMITS, A_RESUMED_UPLOAD_COMMITS];
    Scope {
        restarts: 1,
        lost_answers: 1,
        fencing: true,
        ..scope(&writers, &reaches)
    }
}

/// A second process takes a writer's intent as left behind and continues it.
pub fn twins() -> Scope {
    let writers = [
        writer(A, 1),
        writer(AB, 3),
        writer(AB, 3).twin_of(1),
        writer(A, 2),
    ];
    scope(
        &writers,
        &[A_TWIN_COMMITS, A_KEY_IS_SHARED, AN_EVICTION_COMPLETES],
    )
}

/// A node is restarted while its last upload is still under way, and so is a copy of its data directory.
/// Both follow the first incarnation, and neither follows the other.
pub fn copies() -> Scope {
    let writers = [
        writer(A, 1).of_incarnation(1).retries(1),
        writer(AB, 2).of_incarnation(2),
        writer(B, 3).of_incarnation(3),
        writer(A, 4).of_incarnation(2),
    ];
    let reaches = [
        A_WRITER_IS_REFUSED,
        THE_COPY_COMMITS,
        THE_RESTARTED_COMMITS,
        A_KEY_IS_SHARED,
    ];
    Scope {
        follows: [0, 0, 1 << 1, 1 << 1],
        num_retained: 2,
        lost_answers: 1,
        ..scope(&writers, &reaches)
    }
}

/// The root is lost, and a writer creates a new one.
pub fn lost_root() -> Scope {
    let writers = [writer(A, 1).retries(1), writer(A, 2).retries(1)];
    Scope {
        lost_root: true,
        fencing: true,
        ..scope(&writers, &[A_NEW_ROOT_RETAINS])
    }
}

/// Two writers, and all faults that may occur.
pub fn everything() -> Scope {
    let writers = [writer(A, 1), writer(AB, 2)];
    let reaches = [
        EVERYBODY_COMMITS,
        A_COMMIT_GOES_UNNOTICED,
        A_PINNED_SNAPSHOT_IS_CUT_OFF,
    ];
    Scope {
        lost_answers: 1,
        fencing: true,
        restarts: 1,
        restores: 1,
        failing_deletes: true,
        ..scope(&writers, &reaches)
    }
}

/// Scopes that take up to minutes each.
pub mod large {
    use super::*;

    pub fn fencing() -> Scope {
        let writers = [writer(A, 1), writer(AB, 3).retries(1), writer(B, 2)];
        Scope {
            fencing: true,
            ..scope(&writers, &[EVERYBODY_COMMITS, AN_UPLOAD_IS_SWEPT])
        }
    }

    pub fn ambiguity() -> Scope {
        let writers = [
            writer(A, 1).retries(1),
            writer(AB, 3).retries(1),
            writer(B, 2),
        ];
        Scope {
            lost_answers: 2,
            ..scope(
                &writers,
                &[EVERYBODY_COMMITS, A_COMMIT_IS_CUT_OFF_UNNOTICED],
            )
        }
    }

    pub fn retention() -> Scope {
        Scope {
            restores: 1,
            ..super::retention()
        }
    }

    pub fn twins() -> Scope {
        Scope {
            lost_answers: 1,
            ..super::twins()
        }
    }

    pub fn everything() -> Scope {
        let writers = [writer(A, 1), writer(AB, 3), writer(B, 2)];
        let reaches = [
            EVERYBODY_COMMITS,
            A_COMMIT_GOES_UNNOTICED,
            A_PINNED_SNAPSHOT_IS_CUT_OFF,
        ];
        Scope {
            lost_answers: 1,
            fencing: true,
            restores: 1,
            ..scope(&writers, &reaches)
        }
    }
}

const EVERYBODY_COMMITS: Reach = ("every writer commits", |m, s| {
    (0..m.writers.len()).all(|w| s.committed & ids_of(w) != 0)
});

const A_KEY_IS_SHARED: Reach = ("two committed snapshots share a key", |_, s| {
    members(s.committed)
        .any(|a| members(s.committed).any(|b| a != b && s.contents[a] & s.contents[b] != 0))
});

const AN_EVICTION_COMPLETES: Reach = ("a snapshot that was cut off is deleted", |_, s| {
    s.committed & s.gone_metadata != 0
});

const AN_UPLOAD_IS_SWEPT: Reach = ("the upload of a fenced writer is swept", |_, s| {
    s.gone_metadata & !s.committed != 0
});

const A_FURTHER_ID_COMMITS: Reach = (
    "a snapshot commits under an id added to its intent",
    |m, s| {
        let first_ids = (0..WRITERS).fold(0, |ids, w| ids | ids_of(w) & !(ids_of(w) << 1));
        members(s.committed & !first_ids).any(|id| m.writers[writer_of(id)].retries == 0)
    },
);

const A_COMMIT_GOES_UNNOTICED: Reach = (
    "a commit is in the root, and its owner does not know",
    |_, s| unnoticed(s) & s.root.retained != 0,
);

const A_COMMIT_IS_CUT_OFF_UNNOTICED: Reach = (
    "a commit is cut off before its owner knows of it",
    |_, s| unnoticed(s) & !s.root.retained != 0,
);

const A_WRITER_IS_REFUSED: Reach = (
    "a snapshot older than all retained ones is refused",
    |m, s| {
        (0..m.writers.len())
            .any(|w| s.writers[w].phase == Phase::Done && s.committed & ids_of(w) == 0)
    },
);

const A_PINNED_SNAPSHOT_IS_CUT_OFF: Reach = ("a pinned snapshot is cut off", |_, s| {
    s.root.pinned() & !s.root.retained & !s.root.abandoned != 0
});

const AN_ABANDONED_SNAPSHOT_IS_PINNED: Reach = ("an abandoned snapshot is pinned", |_, s| {
    s.root.pinned() & s.root.abandoned != 0
});

const A_NEW_LINEAGE_COMMITS: Reach = (
    "the new lineage commits beside what was abandoned",
    |m, s| {
        let of_the_new = members(s.root.retained).any(|id| m.writers[writer_of(id)].lineage != 0);
        of_the_new && s.root.abandoned != 0
    },
);

const A_RESUMED_UPLOAD_COMMITS: Reach = ("a restarted writer commits with its intent", |_, s| {
    s.writers.iter().any(|writer| {
        writer.resumed && writer.phase == Phase::Commit && s.committed & writer.id != 0
    })
});

const A_TWIN_COMMITS: Reach = ("the second process commits, not the first", |m, s| {
    let twin = |w: &usize| {
        m.writers[*w]
            .twin_of
            .is_some_and(|first| s.committed & ids_of(first) == 0)
    };
    (0..m.writers.len())
        .filter(twin)
        .any(|w| s.committed & ids_of(w) != 0)
});

const THE_COPY_COMMITS: Reach = (
    "the copy of a node commits, after its original did",
    |_, s| s.committed & ids_of(0) != 0 && s.committed & ids_of(2) != 0,
);

const THE_RESTARTED_COMMITS: Reach = ("the restarted node commits twice", |_, s| {
    s.committed & ids_of(1) != 0 && s.committed & ids_of(3) != 0
});

const A_NEW_ROOT_RETAINS: Reach = ("a root rebuilt retains a snapshot", |_, s| {
    s.lost_root && s.root.retained != 0
});

/// Committed snapshots whose writers have not read the root back yet.
fn unnoticed(s: &State) -> Ids {
    let waiting = s
        .writers
        .iter()
        .filter(|writer| writer.phase == Phase::Commit);
    waiting.fold(0, |ids, writer| ids | writer.id) & s.committed
}
