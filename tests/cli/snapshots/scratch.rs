//! A repository in a directory, and snapshots in it.

use super::*;

/// A directory with a repository and the user's cache directory in it.
pub struct Scratch {
    pub dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Creates a directory with these files.
    pub fn files(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.path(name);
        for (file, text) in files {
            let file = dir.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        dir
    }

    /// `esker snapshot` with arguments, in this directory, on the repository `backups` in it.
    pub fn snapshot(&self, arguments: &[&str]) -> Command {
        let mut command = esker();
        command
            .arg("snapshot")
            .args(arguments)
            .current_dir(self.dir.path())
            .env("ESKER_REPOSITORY", "backups")
            .env("XDG_CACHE_HOME", self.path("caches"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        run(self.snapshot(arguments), b"")
    }

    /// Runs a command, which has to succeed. Returns its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    /// Runs a command, which has to succeed and print one JSON document. Returns that.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{printed}"))
    }

    /// Runs a command, which has to fail with this exit code and error code. Returns its standard error.
    pub fn fails(&self, exit: i32, code: &str, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {said}");
        assert!(
            said.contains(&format!("error [{code}]: ")),
            "{arguments:?}: {said}"
        );
        said
    }

    pub fn root(&self) -> Value {
        let root = fs::read(self.path("backups/0/latest.json")).unwrap();
        serde_json::from_slice(&root).unwrap()
    }

    /// The objects below a directory of partition 0.
    pub fn objects(&self, below: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path("backups/0").join(below)) else {
            return Vec::new();
        };
        let mut found: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    }

    /// Two snapshots that share a file.
    pub fn with_two() -> Scratch {
        let scratch = Scratch::new();
        scratch.files("one", &[("a", "same"), ("b", "old")]);
        scratch.files("two", &[("a", "same"), ("b", "new"), ("sub/c", "added")]);
        scratch.ok(&["put", "one", "--lsn", "100", "--num-retained", "3"]);
        scratch.ok(&["put", "two", "--lsn", "200", "--num-retained", "3"]);
        scratch
    }
}

/// Replaces a file by one with other bytes, without changing other hard links to it.
pub fn replace(file: &Path, bytes: &[u8]) {
    fs::remove_file(file).unwrap();
    fs::write(file, bytes).unwrap();
}
