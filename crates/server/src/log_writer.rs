//! Standard error for the log: a write neither fails nor waits.
//!
//! Lines go into a queue, and one thread writes them. If standard error fails or blocks (a full disk, a
//! pipe whose reader is gone or has stopped reading), lines of the log are lost, and nothing else is
//! affected. Lost lines are counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait to be written. Beyond it, new lines are lost, so that memory stays bounded
/// when nobody reads.
const MAX_QUEUED: usize = 1024 * 1024;
/// Pause before a retry where a write would block, because another program made the file non-blocking.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Attempts at one line before it is lost.
const MAX_ATTEMPTS: u32 = 100;

/// Writes lines without failing or waiting.
pub(crate) struct LogWriter {
    entries: Sender<Entry>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Bytes in the queue.
    queued: AtomicUsize,
    /// Lines that were not written.
    lost: AtomicU64,
}

enum Entry {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

impl LogWriter {
    /// A writer with a thread of its own.
    pub(crate) fn start(out: impl Write + Send + 'static) -> LogWriter {
        let (entries, received) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        // Without the thread the queue has no receiver, and every line counts as lost.
        let _ = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || write_lines(&received, &shared, out));
        LogWriter { entries, counts }
    }

    /// Queues a line, with its line feed.
    pub(crate) fn line(&self, line: Vec<u8>) {
        let length = line.len();
        let queued = self.counts.queued.fetch_add(length, Ordering::Relaxed);
        if queued + length <= MAX_QUEUED && self.entries.send(Entry::Line(line)).is_ok() {
            return;
        }
        self.counts.queued.fetch_sub(length, Ordering::Relaxed);
        self.counts.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Lines that were not written: standard error could not be written, or nobody read it.
    pub(crate) fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// Waits until what was queued so far has been written, at most for `timeout`.
    pub(crate) fn flush(&self, timeout: Duration) {
        let (done, wait) = mpsc::channel();
        if self.entries.send(Entry::Flush(done)).is_ok() {
            // After that the wait is given up.
            let _ = wait.recv_timeout(timeout);
        }
    }
}

fn write_lines(entries: &Receiver<Entry>, counts: &Counts, mut out: impl Write) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                if write_line(&mut out, &line).is_err() {
                    counts.lost.fetch_add(1, Ordering::Relaxed);
                }
                counts.queued.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Entry::Flush(done) => {
                let _ = out.flush();
                // The caller may have given up.
                let _ = done.send(());
            }
        }
    }
}

fn write_line(out: &mut impl Write, mut rest: &[u8]) -> io::Result<()> {
    let mut attempts = 0;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && attempts < MAX_ATTEMPTS => {
                attempts += 1;
                std::thread::sleep(RETRY_INTERVAL);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for &'static LogWriter {
    type Writer = &'a LogWriter;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Fails like a full disk while the switch is set, and otherwise keeps what is written to it.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(bool, Vec<u8>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            if state.0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_later_ones_are_written() {
        let disk = Disk::default();
        let writer = LogWriter::start(disk.clone());
        writer.line(b"one\n".to_vec());
        writer.flush(LONG);
        disk.0.lock().unwrap().0 = true;
        for _ in 0..3 {
            (&writer).write_all(b"lost\n").unwrap();
        }
        writer.flush(LONG);
        assert_eq!(writer.lost(), 3);
        disk.0.lock().unwrap().0 = false;
        writer.line(b"two\n".to_vec());
        writer.flush(LONG);
        assert_eq!(disk.0.lock().unwrap().1, b"one\ntwo\n");
        assert_eq!(writer.counts.queued.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_reader_that_stopped_costs_lines_and_bounded_memory_and_no_time() {
        // A pipe that nobody reads: the thread waits in its first write.
        let (blocked, wait) = mpsc::channel::<()>();
        struct Pipe(Receiver<()>);
        impl Write for Pipe {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let writer = LogWriter::start(Pipe(wait));
        let line = vec![b'x'; 1024];
        for _ in 0..2 * MAX_QUEUED / line.len() {
            writer.line(line.clone());
        }
        assert_eq!(writer.lost(), (MAX_QUEUED / line.len()) as u64);
        assert_eq!(writer.counts.queued.load(Ordering::Relaxed), MAX_QUEUED);
        writer.flush(Duration::from_millis(1));
        drop(blocked);
        writer.flush(LONG);
        assert_eq!(writer.counts.queued.load(Ordering::Relaxed), 0);
    }
}
