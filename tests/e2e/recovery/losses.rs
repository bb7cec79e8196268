//! The kinds of losses and damage, and functions that inflict them.

use std::fs;
use std::path::{Path, PathBuf};

use testkit::corruption::{change_alone, change_in_place, flip, flip_middle};
use testkit_s3::Fault;

use super::target::{Node, PARTITIONS, Target, copy_dir};

/// What is lost or damaged in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Nothing,
    Database,
    DatabaseAndLocalSnapshots,
    ManifestFlipped,
    TableTruncated,
    TableMissing,
    /// The database from the end of the first phase replaces the current one.
    OldDatabase,
    Log,
    LogDamaged,
    /// The log from the end of the first phase replaces the current one.
    OldLog,
    LogAndDatabase,
    LogAndDatabaseAndLocalSnapshots,
    Everything,
}

/// What is lost or damaged in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryLoss {
    Nothing,
    NewestFlipped,
    NewestWithoutDescription,
    AllButOldest,
    All,
    /// The newest snapshot of one partition.
    OneNewest,
    Gone,
    Emptied,
}

impl Loss {
    pub fn inflict(self, data: &Path) {
        let remove = |what: &str| {
            // Local snapshots may not exist.
            let _ = fs::remove_dir_all(data.join(what));
        };
        let replace = |what: &str| {
            remove(what);
            let old = data.with_file_name("data-of-phase-1");
            copy_dir(&old.join(what), &data.join(what));
        };
        match self {
            Loss::Nothing => {}
            Loss::Database => remove("db"),
            Loss::DatabaseAndLocalSnapshots => {
                remove("db");
                remove("checkpoints");
            }
            Loss::ManifestFlipped => {
                let manifest = newest(&data.join("db"), |name| name.starts_with("MANIFEST-"));
                change_alone(&manifest, flip_middle);
            }
            Loss::TableTruncated => {
                let table = newest(&data.join("db"), |name| name.ends_with(".sst"));
                let mut content = fs::read(&table).unwrap();
                content.truncate(content.len() / 2);
                // Checkpoints have a hard link to the same file.
                fs::remove_file(&table).unwrap();
                fs::write(&table, content).unwrap();
            }
            Loss::TableMissing => {
                let table = newest(&data.join("db"), |name| name.ends_with(".sst"));
                fs::remove_file(table).unwrap();
            }
            Loss::OldDatabase => replace("db"),
            Loss::OldLog => replace("log"),
            Loss::Log => remove("log"),
            Loss::LogDamaged => {
                let name = |name: &str| name.ends_with(".raftlog");
                let file = newest(&data.join("log"), name);
                change_in_place(&file, |content| {
                    let written = content.iter().rposition(|b| *b != 0).unwrap();
                    flip(content, written / 2);
                });
            }
            Loss::LogAndDatabase => {
                remove("log");
                remove("db");
            }
            Loss::LogAndDatabaseAndLocalSnapshots => {
                remove("log");
                remove("db");
                remove("checkpoints");
            }
            Loss::Everything => fs::remove_dir_all(data).unwrap(),
        }
    }
}

impl RepositoryLoss {
    pub fn inflict(self, target: &Target) {
        for partition in 0..=PARTITIONS {
            match self {
                RepositoryLoss::NewestFlipped => target.damage(partition, 0),
                RepositoryLoss::NewestWithoutDescription => target.forget(partition, 0),
                RepositoryLoss::AllButOldest => {
                    target.damage(partition, 0);
                    target.damage(partition, 1);
                }
                RepositoryLoss::All => (0..3).for_each(|at| target.damage(partition, at)),
                RepositoryLoss::OneNewest if partition == 1 => target.damage(partition, 0),
                RepositoryLoss::Nothing
                | RepositoryLoss::Gone
                | RepositoryLoss::Emptied
                | RepositoryLoss::OneNewest => {}
            }
        }
        match (self, target) {
            (RepositoryLoss::Gone, Target::S3(s3)) => s3.fail(Fault::Disconnect),
            (RepositoryLoss::Gone, Target::Directory(dir)) => {
                // The path is neither a file nor missing, so it cannot be read.
                for partition in 0..=PARTITIONS {
                    let root = dir.join(format!("{partition}/latest.json"));
                    fs::rename(&root, root.with_extension("away")).unwrap();
                    fs::create_dir(&root).unwrap();
                }
            }
            (RepositoryLoss::Emptied, target) => target.empty(),
            _ => {}
        }
    }

    /// Undoes [`RepositoryLoss::Gone`].
    pub fn restore_access(target: &Target) {
        match target {
            Target::S3(s3) => s3.heal(),
            Target::Directory(dir) => {
                for partition in 0..=PARTITIONS {
                    let root = dir.join(format!("{partition}/latest.json"));
                    fs::remove_dir(&root).unwrap();
                    fs::rename(root.with_extension("away"), root).unwrap();
                }
            }
        }
    }
}

/// Inflicts both.
pub fn inflict(node: &Node, loss: Loss, harm: RepositoryLoss) {
    loss.inflict(&node.data());
    harm.inflict(&node.target);
    if matches!(harm, RepositoryLoss::Emptied) {
        // Removed, too, because otherwise the destination would count as not mounted.
        let _ = fs::remove_file(node.data().join("destination.json"));
    }
}

/// The last file, by name, that is wanted.
pub fn newest(dir: &Path, wanted: impl Fn(&str) -> bool) -> PathBuf {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let wanted = names.filter(|entry| wanted(&entry.file_name().to_string_lossy()));
    wanted.map(|entry| entry.path()).max().expect("such a file")
}
