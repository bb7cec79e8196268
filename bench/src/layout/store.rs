//! One partition in each of the layouts.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rust_rocksdb::checkpoint::Checkpoint;
use rust_rocksdb::statistics::Ticker;
use rust_rocksdb::{
    BlockBasedOptions, ExportImportFilesMetaData, FlushOptions, ImportColumnFamilyOptions, Options,
    WriteBatch,
};

use super::database::{DATA, Db, INDEX, POSITION, STATE, by_time, family, in_segment, key, open};
use super::lookup;
use super::segments::Segments;
use super::tuning::{Layout, Tuning};

/// Appends that share a write batch.
const GROUP: u32 = 64;

/// A batch in the store.
#[derive(Clone, Debug)]
struct Piece {
    seq: u64,
    time: u64,
    bytes: u64,
    /// User bytes that had been appended before it.
    age: u64,
    lsn: u64,
    segment: u64,
    /// First sequence number of the run that it is in: batches of the same stream and segment.
    run: u64,
}

#[derive(Default)]
struct Stream {
    next: u64,
    pieces: VecDeque<Piece>,
    /// Segment and first sequence number of the run that grows.
    run: Option<(u64, u64)>,
}

/// Counters of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Batches and their keys that the user wrote.
    pub user: u64,
    /// Batches that were moved to another segment.
    pub moved: u64,
    pub flushed: u64,
    pub compacted: u64,
}

/// A checkpoint.
pub struct Export {
    /// How long it took.
    pub took: Duration,
    /// Names and sizes of its files.
    pub files: Vec<(PathBuf, u64)>,
    metadata: Vec<ExportImportFilesMetaData>,
}

/// A partition.
pub struct Store {
    db: Db,
    options: Options,
    pub tuning: Tuning,
    streams: Vec<Stream>,
    segments: Segments,
    batch: WriteBatch,
    pending: u32,
    lsn: u64,
    user: u64,
    moved: u64,
    live: u64,
}

impl Store {
    pub fn create(path: &Path, tuning: &Tuning, streams: usize) -> anyhow::Result<Store> {
        let (db, options) = open(path, tuning, false)?;
        Ok(Store {
            db,
            options,
            tuning: tuning.clone(),
            streams: (0..streams).map(|_| Stream::default()).collect(),
            segments: Segments::default(),
            batch: WriteBatch::default(),
            pending: 0,
            lsn: 0,
            user: 0,
            moved: 0,
            live: 0,
        })
    }

    /// Appends a batch of records, and updates the stream's state.
    pub fn append(&mut self, stream: usize, records: u64, value: &[u8]) -> anyhow::Result<()> {
        let id = stream as u64;
        self.lsn += 1;
        let bytes = (17 + value.len()) as u64;
        let seq = self.streams[stream].next;
        let mut piece = Piece {
            seq,
            time: self.lsn,
            bytes,
            age: self.user,
            lsn: self.lsn,
            segment: 0,
            run: seq,
        };
        let run = self.streams[stream].run;
        let run = self.put(id, &mut piece, run, value)?;
        let main = family(&self.db, "main")?;
        self.batch.put_cf(&main, by_time(id, piece.time, seq), b"");
        let mut state = [0x5a; 96];
        state[..8].copy_from_slice(&(seq + records).to_be_bytes());
        state[8..16].copy_from_slice(&self.lsn.to_be_bytes());
        self.batch.put_cf(&main, &key(STATE, id, 0)[..9], state);
        drop(main);
        let owner = &mut self.streams[stream];
        owner.run = run;
        owner.next += records;
        owner.pieces.push_back(piece);
        self.user += bytes + 25;
        self.live += bytes;
        self.pending += 1;
        if self.pending >= GROUP {
            self.write()?;
            self.cut(self.tuning.segment_mib * super::MIB, false)?;
        }
        Ok(())
    }

    /// Ends the open segment if it has at least `full` bytes. Files begin and end with segments, so that
    /// their ranges do not overlap.
    fn cut(&mut self, full: u64, wait: bool) -> anyhow::Result<()> {
        if self.segments.size() < full.max(1) {
            return Ok(());
        }
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        let data = family(&self.db, "data")?;
        self.db.flush_cf_opt(&data, &options)?;
        self.segments.seal();
        Ok(())
    }

    /// Puts a batch at the place of the layout. Returns the run that it continues or begins.
    fn put(
        &mut self,
        id: u64,
        piece: &mut Piece,
        run: Option<(u64, u64)>,
        value: &[u8],
    ) -> anyhow::Result<Option<(u64, u64)>> {
        let main = family(&self.db, "main")?;
        if self.tuning.layout == Layout::Stream {
            self.batch.put_cf(&main, key(DATA, id, piece.seq), value);
            return Ok(None);
        }
        let data = family(&self.db, "data")?;
        let segment = self.segments.add(piece.lsn, piece.bytes);
        piece.segment = segment;
        if self.tuning.layout == Layout::Log {
            self.batch.put_cf(&data, key(DATA, piece.lsn, 0), value);
            self.batch
                .put_cf(&main, key(INDEX, id, piece.seq), piece.lsn.to_be_bytes());
            return Ok(None);
        }
        self.batch
            .put_cf(&data, in_segment(segment, id, piece.seq), value);
        let run = run.filter(|run| run.0 == segment);
        let (_, first) = run.unwrap_or((segment, piece.seq));
        if run.is_none() {
            self.batch
                .put_cf(&main, key(INDEX, id, first), segment.to_be_bytes());
        }
        piece.run = first;
        Ok(Some((segment, first)))
    }

    /// Writes the gathered batches.
    pub fn write(&mut self) -> anyhow::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let main = family(&self.db, "main")?;
        let mut position = [0; 40];
        position[..8].copy_from_slice(&self.lsn.to_be_bytes());
        self.batch.put_cf(&main, [POSITION], position);
        self.db.write_without_wal(&self.batch)?;
        self.batch.clear();
        self.pending = 0;
        Ok(())
    }

    /// Trims a stream to the batches of the last `younger` user bytes, but keeps its last batch.
    pub fn trim(&mut self, stream: usize, younger: u64) -> anyhow::Result<()> {
        let limit = self.user.saturating_sub(younger);
        let id = stream as u64;
        let owner = &mut self.streams[stream];
        let mut last = None;
        while owner.pieces.len() > 1 && owner.pieces.front().is_some_and(|p| p.age < limit) {
            let Some(piece) = owner.pieces.pop_front() else {
                break;
            };
            self.live -= piece.bytes;
            self.segments.remove(piece.segment, piece.bytes);
            last = Some(piece);
        }
        let (Some(last), Some(kept)) = (last, owner.pieces.front()) else {
            return Ok(());
        };
        let (kept_seq, kept_run) = (kept.seq, kept.run);
        let main = family(&self.db, "main")?;
        let times = (by_time(id, 0, 0), by_time(id, last.time + 1, 0));
        self.batch.delete_range_cf(&main, times.0, times.1);
        let (kind, end) = match self.tuning.layout {
            Layout::Stream => (DATA, kept_seq),
            Layout::Log => (INDEX, kept_seq),
            Layout::Segment => (INDEX, kept_run),
        };
        self.batch
            .delete_range_cf(&main, key(kind, id, 0), key(kind, id, end));
        drop(main);
        self.write()
    }

    /// Drops segments without live data, after moving the rest of those that have little.
    pub fn reclaim(&mut self) -> anyhow::Result<()> {
        while let Some(victim) = self.segments.victim(self.tuning.garbage) {
            self.move_rest(victim)?;
            self.write()?;
            let Some([first, last]) = self.segments.kill(victim) else {
                continue;
            };
            let data = family(&self.db, "data")?;
            let (from, to) = if self.tuning.layout == Layout::Log {
                (
                    key(DATA, first.1.first, 0).to_vec(),
                    key(DATA, last.1.last, 1).to_vec(),
                )
            } else {
                let end = in_segment(last.0 + 1, 0, 0).to_vec();
                (in_segment(first.0, 0, 0).to_vec(), end)
            };
            self.db.delete_file_in_range_cf(&data, from, to)?;
        }
        Ok(())
    }

    fn move_rest(&mut self, victim: u64) -> anyhow::Result<()> {
        for stream in 0..self.streams.len() {
            let id = stream as u64;
            let mut pieces = std::mem::take(&mut self.streams[stream].pieces);
            let mut run = None;
            for piece in pieces.iter_mut().filter(|p| p.segment == victim) {
                let old = match self.tuning.layout {
                    Layout::Log => key(DATA, piece.lsn, 0).to_vec(),
                    _ => in_segment(victim, id, piece.seq).to_vec(),
                };
                let value = self
                    .db
                    .get_cf(&family(&self.db, "data")?, &old)?
                    .context("a batch is missing")?;
                self.segments.remove(victim, piece.bytes);
                self.moved += piece.bytes;
                self.lsn += 1;
                piece.lsn = self.lsn;
                run = self.put(id, piece, run, &value)?;
            }
            if pieces
                .back()
                .is_some_and(|p| run.is_some_and(|run| p.segment == run.0))
            {
                self.streams[stream].run = None;
            }
            self.streams[stream].pieces = pieces;
            self.write()?;
            self.cut(self.tuning.segment_mib * super::MIB, false)?;
        }
        Ok(())
    }

    fn families(&self) -> &'static [&'static str] {
        match self.tuning.layout {
            Layout::Stream => &["main"],
            _ => &["data", "main"],
        }
    }

    /// Writes memtables to files.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.write()?;
        self.cut(0, true)?;
        for name in self.families() {
            self.db.flush_cf(&family(&self.db, name)?)?;
        }
        Ok(())
    }

    /// Waits until no compaction is pending.
    pub fn settle(&self) -> anyhow::Result<()> {
        let busy = |property: &str| -> anyhow::Result<bool> {
            let mut sum = 0;
            for name in self.families() {
                let family = family(&self.db, name)?;
                sum += self
                    .db
                    .property_int_value_cf(&family, property)?
                    .unwrap_or(0);
            }
            Ok(sum > 0)
        };
        // Universal compaction may stay pending although it would select nothing.
        let mut quiet = 0;
        while quiet < 20 {
            let working =
                busy("rocksdb.num-running-compactions")? || busy("rocksdb.num-running-flushes")?;
            let step = if busy("rocksdb.compaction-pending")? {
                1
            } else {
                5
            };
            quiet = if working { 0 } else { quiet + step };
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Exports a checkpoint, data first.
    pub fn export(&mut self, to: &Path) -> anyhow::Result<Export> {
        self.write()?;
        std::fs::create_dir_all(to)?;
        let started = Instant::now();
        self.cut(0, true)?;
        let mut metadata = Vec::new();
        for name in self.families() {
            metadata.push(
                Checkpoint::new(&self.db)?
                    .export_column_family(&family(&self.db, name)?, to.join(name))?,
            );
        }
        let took = started.elapsed();
        let mut files = Vec::new();
        for name in self.families() {
            for entry in std::fs::read_dir(to.join(name))? {
                let entry = entry?;
                files.push((entry.file_name().into(), entry.metadata()?.len()));
            }
        }
        Ok(Export {
            took,
            files,
            metadata,
        })
    }

    /// Imports a checkpoint into a new database, and reads every stream there from its first batch.
    pub fn check(&self, export: &Export, scratch: &Path) -> anyhow::Result<()> {
        let mut options = Options::default();
        options.create_if_missing(true);
        let db = Db::open(&options, scratch)?;
        let table = BlockBasedOptions::default();
        for (name, metadata) in self.families().iter().zip(&export.metadata) {
            let options = if *name == "data" {
                self.tuning.data(&table)
            } else {
                self.tuning.main(&table)
            };
            let import = ImportColumnFamilyOptions::default();
            db.create_column_family_with_import(&options, name, &import, metadata)?;
        }
        for (id, stream) in (0..).zip(&self.streams) {
            let first = stream.pieces.front().map_or(0, |piece| piece.seq);
            let wanted: u64 = stream.pieces.iter().map(|piece| piece.bytes - 17).sum();
            let found = lookup::read(&db, self.tuning.layout, id, first)?;
            ensure!(
                found == wanted,
                "stream {id} has {found} bytes, not {wanted}"
            );
        }
        Ok(())
    }

    pub fn counted(&self) -> Counted {
        Counted {
            user: self.user,
            moved: self.moved,
            flushed: self.options.get_ticker_count(Ticker::FlushWriteBytes),
            compacted: self.options.get_ticker_count(Ticker::CompactWriteBytes),
        }
    }

    /// Bytes of batches that were not trimmed, with their keys.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Sorted runs of all column families: the most that a read has to look into.
    pub fn runs(&self) -> anyhow::Result<usize> {
        let files = self.db.live_files()?;
        let mut deeper: Vec<_> = files
            .iter()
            .filter(|file| file.level > 0)
            .map(|file| (&file.column_family_name, file.level))
            .collect();
        deeper.sort();
        deeper.dedup();
        Ok(deeper.len() + files.iter().filter(|file| file.level == 0).count())
    }
}
