//! A file system of a known size.
//!
//! It is a small `tmpfs`, which needs root. Without root, tests that need one print that and pass.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::Setup;

/// The file that fills it.
const BALLAST: &str = "ballast";

/// A file system of a known size; it is removed when this is dropped.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` without the permission to mount.
    pub fn mount(mib: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "esker-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { dir }),
            other => {
                testkit::skipped(&format!("a small tmpfs cannot be mounted here: {other:?}"));
                None
            }
        }
    }

    /// Gives it another size.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn resize(&self, mib: u64) {
        let output = Command::new("mount")
            .args(["-o", &format!("remount,size={mib}m")])
            .arg(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The path of a file or directory on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Bytes that are free.
    ///
    /// # Panics
    ///
    /// If the system call fails.
    pub fn free(&self) -> u64 {
        let stats = rustix::fs::statvfs(self.dir.path()).unwrap();
        stats.f_bavail * stats.f_frsize
    }

    /// Writes until nothing more fits.
    ///
    /// # Panics
    ///
    /// If its file cannot be opened.
    pub fn fill_up(&self) {
        let mut ballast = fs::OpenOptions::new();
        let ballast = ballast.append(true).create(true);
        let mut ballast = ballast.open(self.path(BALLAST)).unwrap();
        for size in [64 * 1024, 4096, 512, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Frees what filled it.
    ///
    /// # Panics
    ///
    /// If nothing has filled it.
    pub fn clear(&self) {
        fs::remove_file(self.path(BALLAST)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            // A process that still has it open ends soon.
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.dir.path())
                .output();
        }
    }
}

/// Settings of small files, so that a disk of some MiB is filled to the byte and not to a segment.
pub fn with_small_files(setup: Setup) -> Setup {
    setup
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=4MiB")
        .set("log.flush-after=1MiB")
        .set("store.write-buffer=1MiB")
        .set("store.write-buffers-total=2MiB")
}
