//! The destination of snapshots: a directory or an S3 server; and a node, which is a data directory beside
//! it.
//!
//! Tests read and damage the destination without the server's knowledge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testkit::corruption::flip_middle;
use testkit_s3::S3Server;
use testkit_s3::objects::Objects;

use crate::support::{Setup, eventually};

/// Stream partitions of all scenarios; the catalog comes in addition.
pub const PARTITIONS: u64 = 2;

/// The kind of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory on the data directory's file system.
    Directory,
    /// An S3 server.
    S3,
}

/// A destination.
pub enum Target {
    Directory(PathBuf),
    S3(S3Server<Objects>),
}

impl Target {
    async fn new(kind: Kind, scratch: &Path) -> Target {
        match kind {
            Kind::Directory => Target::Directory(scratch.join("backups")),
            Kind::S3 => Target::S3(S3Server::in_memory().await),
        }
    }

    /// Configures servers to use it.
    pub fn setup(&self, setup: Setup) -> Setup {
        match self {
            Target::Directory(dir) => {
                setup.set(&format!("snapshots.destination={}", dir.display()))
            }
            Target::S3(s3) => setup.set_all(&s3.settings()),
        }
    }

    /// The S3 server.
    pub fn s3(&self) -> &S3Server<Objects> {
        match self {
            Target::S3(s3) => s3,
            Target::Directory(_) => panic!("it is a directory"),
        }
    }

    /// All objects, below the prefix.
    pub fn keys(&self) -> BTreeSet<String> {
        match self {
            Target::Directory(dir) => files(dir),
            Target::S3(s3) => {
                let keys = s3.keys();
                let below = keys.iter().filter_map(|key| key.strip_prefix("esker/"));
                below.map(str::to_owned).collect()
            }
        }
    }

    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self {
            Target::Directory(dir) => fs::read(dir.join(key)).ok(),
            Target::S3(s3) => s3.get(&format!("esker/{key}")),
        }
    }

    /// Replaces an object by a new file; hard links to the old file keep its content.
    pub fn replace(&self, key: &str, content: Vec<u8>) {
        match self {
            Target::Directory(dir) => {
                let new = dir.join("replacement");
                fs::write(&new, content).unwrap();
                fs::create_dir_all(dir.join(key).parent().unwrap()).unwrap();
                fs::rename(new, dir.join(key)).unwrap();
            }
            Target::S3(s3) => s3.put(&format!("esker/{key}"), content),
        }
    }

    pub fn remove(&self, key: &str) {
        match self {
            Target::Directory(dir) => fs::remove_file(dir.join(key)).unwrap(),
            Target::S3(s3) => s3.remove(&format!("esker/{key}")),
        }
    }

    pub fn empty(&self) {
        match self {
            Target::Directory(dir) => {
                fs::remove_dir_all(dir).unwrap();
                fs::create_dir(dir).unwrap();
            }
            Target::S3(_) => self.keys().iter().for_each(|key| self.remove(key)),
        }
    }

    /// All objects with their content.
    pub fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let keys = self.keys().into_iter();
        keys.filter_map(|key| Some((key.clone(), self.get(&key)?)))
            .collect()
    }

    /// The root of a partition, if it has one.
    pub fn root(&self, partition: u64) -> Option<Root> {
        let text = self.get(&format!("{partition}/latest.json"))?;
        Some(Root {
            partition,
            json: serde_json::from_slice(&text).unwrap(),
        })
    }

    /// Waits until all partitions have a snapshot, and returns their roots.
    pub async fn roots(&self) -> Vec<Root> {
        eventually("every partition has a snapshot", async || {
            let roots = (0..=PARTITIONS).map(|p| self.root(p).filter(|r| r.newest() > 0));
            roots.collect()
        })
        .await
    }

    /// Keys of a retained snapshot's files; 0 is the newest.
    fn files_of(&self, root: &Root, at: usize) -> BTreeSet<String> {
        let dir = &root.retained()[at];
        let Some(metadata) = self.get(&format!("{dir}/metadata.json")) else {
            return BTreeSet::new();
        };
        let metadata: Value = serde_json::from_slice(&metadata).unwrap();
        let keys = metadata["file_keys"].as_object();
        let key = |file: &Value| {
            let name = file["name"].as_str().unwrap();
            match keys.and_then(|keys| keys.get(name)) {
                Some(key) => format!("{}/{}", root.partition, key.as_str().unwrap()),
                None => format!("{dir}{name}"),
            }
        };
        metadata["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(key)
            .collect()
    }

    /// Flips a byte in a file of a retained snapshot (0 is the newest) that no older snapshot has.
    pub fn damage(&self, partition: u64, at: usize) {
        let damaged = self.damage_or_forget(partition, at);
        assert!(damaged.is_some(), "no file that no older one has");
    }

    /// The same; if there is no such file, the description is removed. Returns the file's key.
    pub fn damage_or_forget(&self, partition: u64, at: usize) -> Option<String> {
        let root = self.root(partition).unwrap();
        let mut files = self.files_of(&root, at);
        for older in at + 1..root.retained().len() {
            for file in self.files_of(&root, older) {
                files.remove(&file);
            }
        }
        let Some(key) = files.pop_first() else {
            self.forget(partition, at);
            return None;
        };
        let mut content = self.get(&key).unwrap_or_else(|| panic!("no {key}"));
        flip_middle(&mut content);
        self.replace(&key, content);
        Some(key)
    }

    /// Whether a retained snapshot has its description, and no file that was damaged.
    pub fn is_whole(&self, root: &Root, at: usize, damaged: &BTreeSet<String>) -> bool {
        let described = self.get(&format!("{}/metadata.json", root.retained()[at]));
        described.is_some() && self.files_of(root, at).is_disjoint(damaged)
    }

    /// Removes the description of a retained snapshot; 0 is the newest.
    pub fn forget(&self, partition: u64, at: usize) {
        let root = self.root(partition).unwrap();
        let description = format!("{}/metadata.json", root.retained()[at]);
        if self.get(&description).is_some() {
            self.remove(&description);
        }
    }
}

/// `latest.json`.
#[derive(Clone, Debug)]
pub struct Root {
    pub partition: u64,
    pub json: Value,
}

impl Root {
    /// Directories of the retained snapshots, with the partition's directory, newest first.
    pub fn retained(&self) -> Vec<String> {
        self.dirs("retained_snapshots")
    }

    /// The same of the abandoned ones.
    pub fn abandoned(&self) -> Vec<String> {
        self.dirs("abandoned")
    }

    fn dirs(&self, field: &str) -> Vec<String> {
        let listed = self.json[field].as_array().map_or(&[][..], Vec::as_slice);
        let dir = |entry: &Value| {
            let path = entry["path"].as_str().unwrap();
            format!("{}/{path}", self.partition)
        };
        listed.iter().map(dir).collect()
    }

    /// The LSN of the newest snapshot; 0 for none.
    pub fn newest(&self) -> u64 {
        let newest = &self.json["retained_snapshots"][0]["min_applied_lsn"];
        newest.as_u64().unwrap_or(0)
    }

    pub fn lineage(&self) -> String {
        self.json["lineage"].as_str().unwrap().to_owned()
    }
}

/// A data directory beside a repository, in a temporary directory.
pub struct Node {
    dir: tempfile::TempDir,
    pub target: Target,
    /// How servers are started there.
    pub setup: Setup,
}

impl Node {
    pub async fn new(kind: Kind, setup: Setup) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::new(kind, dir.path()).await;
        Node {
            setup: target.setup(setup),
            dir,
            target,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies the node elsewhere; hard links are preserved.
    pub async fn copy(&self, setup: Setup) -> Node {
        let kind = match self.target {
            Target::Directory(_) => Kind::Directory,
            Target::S3(_) => Kind::S3,
        };
        let copy = Node::new(kind, setup).await;
        copy_dir(self.dir.path(), copy.dir.path());
        if let Target::S3(_) = self.target {
            for (key, content) in self.target.all() {
                copy.target.replace(&key, content);
            }
        }
        copy
    }

    /// The setup with further settings.
    pub fn with(&self, settings: &[&str]) -> Setup {
        let setup = self.setup.clone();
        settings.iter().fold(setup, |setup, one| setup.set(one))
    }
}

/// Copies the content of a directory, with hard links as hard links.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let from = from.join(".");
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).output();
    let copied = copied.unwrap();
    assert!(copied.status.success(), "{copied:?}");
}

/// Paths of all files below a directory.
pub fn files(dir: &Path) -> BTreeSet<String> {
    fn walk(dir: &Path, base: &Path, found: &mut BTreeSet<String>) {
        // The directory may change meanwhile.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, base, found);
            } else {
                let below = path.strip_prefix(base).unwrap();
                found.insert(below.to_string_lossy().into_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(dir, dir, &mut found);
    found
}
