//! A file under inspection, read through one window of memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read at once. Large enough for sequential reads to run at the disk's speed.
const WINDOW_BYTES: usize = 1024 * 1024;

/// A file under inspection: read through one window, strictly forward to be fast.
pub(super) struct Window {
    file: File,
    /// Length of the file in bytes, when it was opened.
    pub(super) size: u64,
    window: Vec<u8>,
    /// Offset of the window's first byte.
    start: u64,
}

impl Window {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            size,
            window: Vec::new(),
            start: 0,
        })
    }

    /// Bytes from `at` to the end of the window that holds it; never empty below `size`.
    pub(super) fn chunk(&mut self, at: u64) -> io::Result<&[u8]> {
        let end = self.start + self.window.len() as u64;
        if at < self.start || at >= end {
            let rest = self.size.saturating_sub(at);
            let len = usize::try_from(rest)
                .unwrap_or(usize::MAX)
                .min(WINDOW_BYTES);
            // Forget the old window first: if the read fails, nothing stale must remain.
            self.window.clear();
            let mut window = std::mem::take(&mut self.window);
            window.resize(len, 0);
            self.file.read_exact_at(&mut window, at)?;
            self.window = window;
            self.start = at;
        }
        Ok(&self.window[(at - self.start) as usize..])
    }

    /// Fills `buf` from `at`; an error if the file ends before.
    pub(super) fn read_exact(&mut self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let chunk = self.chunk(at)?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = chunk.len().min(buf.len());
            buf[..n].copy_from_slice(&chunk[..n]);
            buf = &mut buf[n..];
            at += n as u64;
        }
        Ok(())
    }
}
