//! Clocks of nodes, each of which can be set off while its node runs.
//!
//! They are those of `libfaketime`, which reads the offset of a file once a second.

use std::path::{Path, PathBuf};

use crate::Setup;

/// Where Debian and others install the library.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// The clocks of some nodes.
pub struct Clocks {
    library: &'static str,
    dir: tempfile::TempDir,
}

impl Clocks {
    /// `None` where the library is not installed; that is printed.
    ///
    /// # Panics
    ///
    /// If there is no place for temporary files.
    pub fn new() -> Option<Clocks> {
        let Some(library) = LIBRARIES.into_iter().find(|path| Path::new(path).exists()) else {
            testkit::skipped("libfaketime is not installed, so no clock jumps");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        Some(Clocks { library, dir })
    }

    /// Gives a node its clock, which is right at first.
    pub fn give(&self, at: usize, setup: Setup) -> Setup {
        self.set_off(at, "+0");
        setup
            .variable("LD_PRELOAD", self.library)
            .variable("FAKETIME_TIMESTAMP_FILE", self.file(at).to_str().unwrap())
            .variable("FAKETIME_CACHE_DURATION", "1")
            .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Sets a node's clock off by this, such as `+1h`: within a second, or at once if the node does not run.
    ///
    /// # Panics
    ///
    /// If its file cannot be written.
    pub fn set_off(&self, at: usize, by: &str) {
        std::fs::write(self.file(at), format!("{by}\n")).unwrap();
    }

    fn file(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("clock-{at}"))
    }
}
