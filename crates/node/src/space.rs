//! Space on the disk of the data directory: when an append has to wait for it, and when it is refused.
//!
//! How much space is in use does not depend on how fast clients append:
//!
//! | what | bound | beyond |
//! |---|---|---|
//! | the log | [`Inner::log_limit`]: a quarter more than [`Inner::log_most`] | appends wait until it is trimmed |
//! | what is deleted and still in files | see `reclaim` of esker-partition | appends wait until the files are rewritten |
//! | free space | what is kept free, so that flushes and deletions always work | appends are refused, except those that only trim |
//!
//! Other programs may fill the disk beyond that. For this case the reserve is allocated
//! ([`crate::reserve`]): a command that gives space back releases it if less is free than it holds. Appends
//! are taken again once there is space for what is kept free and for the reserve.
//!
//! The log writer counts the bytes that it writes, so the first and the last bound are exact between two
//! measurements of the disk. Appends that were admitted before add `limits.append-inflight` at most.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use esker_partition::command::Outcome;
use esker_partition::store::PartitionDb;
use esker_raft::Group;
use tokio::time::Instant;

use crate::core::Inner;
use crate::error::Error;
use crate::reserve::Reserve;
use crate::snapshots::OnLogFull;

/// Longest that an append waits for space: within the 5 s that the official clients wait for an answer.
const SPACE_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest that a command that gives space back waits for the reserve to be released and the writes before it:
/// its client waits for 5 s, and the command has to be written after that.
const WAY_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval at which a waiting append or command checks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes that do not justify a snapshot.
const LITTLE: u64 = 1 << 20;
/// At most this share of a disk is kept free.
const KEPT_SHARE: u64 = 8;
/// There is room again, for the log of the server, once this share more is free than is kept.
const ROOM_SHARE: u64 = 16;
/// At most this share of a disk is the reserve.
const RESERVE_SHARE: u64 = 16;
/// The reserve holds this many memtables of `store.write-buffer`: one for a flush, which RocksDB requires to
/// be free before it continues after a lack of space; and one for the log and the lists of files.
const RESERVE_MEMTABLES: u64 = 2;
/// How often appended bytes are written before space is released: to the log, to a file of the database, and
/// to another one when files are merged.
const WRITTEN_TIMES: u64 = 3;

/// How a change uses the space of a nearly full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpaceUse {
    /// It takes space and gives none back: it is refused.
    Takes,
    /// It takes hardly any, or retries what has given space back: it is accepted.
    Keeps,
    /// It gives space back: it is accepted, and the reserve is released for it.
    GivesBack,
}

/// Free and all bytes of a file system; `None` if they cannot be read.
type FileSystem = Option<(u64, u64)>;

/// The file system of a directory.
fn file_system(dir: &Path) -> FileSystem {
    let stats = rustix::fs::statvfs(dir).ok()?;
    Some((
        stats.f_bavail.saturating_mul(stats.f_frsize),
        stats.f_blocks.saturating_mul(stats.f_frsize),
    ))
}

/// Releases the reserve before a start opens the data directory, if less is free than it holds. On a full
/// disk the start has no space for its writes, and no client could trim or delete anything.
pub(crate) fn release_reserve_for_start(data_dir: &Path) {
    let reserve = Reserve::open(data_dir);
    let Some((free, _)) = file_system(data_dir) else {
        return;
    };
    if free >= reserve.bytes_on_disk() {
        return;
    }
    let dir = data_dir.display();
    match reserve.release() {
        Ok(None) => {}
        Ok(Some(bytes)) => tracing::warn!(
            %dir,
            free,
            bytes,
            "The disk is full: the reserve is released for the start, and taken again when there is room"
        ),
        Err(error) => tracing::warn!(%dir, %error, "the reserve cannot be released"),
    }
}

/// Whether the log of the server has to have a line: that there is too little, `Some(true)`, or room again,
/// `Some(false)`. `logged` is whether the last line was the former.
fn shortage_to_log(logged: bool, free: u64, needed: u64) -> Option<bool> {
    match logged {
        false if free < needed => Some(true),
        true if free >= needed + needed / ROOM_SHARE => Some(false),
        _ => None,
    }
}

impl Inner {
    /// Bytes that the log may have on disk before it is trimmed: below its purge threshold it is never made
    /// smaller, and one file of each of its two queues is being written to.
    pub(crate) fn log_most(&self) -> u64 {
        let most = self.options.snapshots.max_log_bytes;
        most.max(self.options.log_purge_threshold) + 2 * self.options.log_segment_size
    }

    /// Bytes that the log may have on disk before appends wait for it to be trimmed.
    pub(crate) fn log_limit(&self) -> u64 {
        let most = self.log_most();
        most + most / 4
    }

    fn written(&self) -> u64 {
        self.raft.writer().counts().bytes
    }

    /// Bytes of the log on disk when it was last measured.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.space.log_bytes.load(Ordering::Relaxed)
    }

    /// Notes the size of the log, and how much the log writer had written then.
    pub(crate) fn note_log(&self, bytes: u64, written: u64) {
        self.space.log_bytes.store(bytes, Ordering::Relaxed);
        let left = self.log_limit().saturating_sub(bytes);
        let limit = match left {
            0 => 0,
            left => written + left,
        };
        self.space.log_limit.store(limit, Ordering::Relaxed);
        if left > 0 {
            self.space.is_stuck.store(false, Ordering::Relaxed);
        }
    }

    /// Whether appends wait for the log to be trimmed.
    pub(crate) fn log_is_over(&self) -> bool {
        self.log_is_over_at(self.written())
    }

    fn log_is_over_at(&self, written: u64) -> bool {
        written >= self.space.log_limit.load(Ordering::Relaxed)
    }

    /// Bytes of a disk of `all` bytes that are kept free, and bytes that the reserve holds in addition.
    fn kept_and_reserved(&self, all: u64) -> (u64, u64) {
        let reserved = match self.space.reserve.is_possible() {
            true => self.reserved(all),
            false => 0,
        };
        (self.kept(all), reserved)
    }

    fn kept(&self, all: u64) -> u64 {
        let store = &self.options.store;
        let kept = store.write_buffers_total as u64 + 2 * self.options.log_segment_size;
        kept.min(all / KEPT_SHARE)
    }

    /// Bytes of the reserve, where the file system can set them aside.
    fn reserved(&self, all: u64) -> u64 {
        let reserved = RESERVE_MEMTABLES * self.options.store.write_buffer as u64;
        reserved.min(all / RESERVE_SHARE)
    }

    /// Measures free space; returns the problem if it is too little. May block.
    pub(crate) fn check_free_space(&self) -> Option<String> {
        let written = self.written();
        self.note_file_system(written, file_system(&self.options.data_dir))
    }

    /// The same from a task. If the file system does not answer in time, the last result is returned.
    async fn check_from_task(&self) -> Option<String> {
        // Appends that are refused meanwhile share the look that is under way, and hold up no trim.
        if self.is_short() && self.space.looking.try_lock().is_err() {
            return self.shortage();
        }
        let written = self.written();
        let dir = self.options.data_dir.clone();
        match self.space.on_thread(move || file_system(&dir)).await {
            Some(found) => self.note_file_system(written, found),
            None => self.shortage(),
        }
    }

    /// Notes the free space after the log writer has written `written` bytes.
    fn note_file_system(&self, written: u64, found: FileSystem) -> Option<String> {
        let Some((free, all)) = found else {
            // A file system whose free space cannot be read counts as full when a write fails.
            self.space.free_limit.store(u64::MAX, Ordering::Relaxed);
            self.space.is_short.store(false, Ordering::Relaxed);
            *self.space.shortage.lock() = None;
            for part in self.parts() {
                part.note_free_space(None);
            }
            return None;
        };
        let (kept, reserved) = self.kept_and_reserved(all);
        let held = self.space.reserve.held();
        // A released reserve is allocated again before appends are taken.
        let needed = kept + reserved.saturating_sub(held);
        let limit = written + free.saturating_sub(needed) / WRITTEN_TIMES;
        self.space.free_limit.store(limit, Ordering::Relaxed);
        let short = free < needed;
        self.space.is_short.store(short, Ordering::Relaxed);
        self.log_shortage(free, needed);
        for part in self.parts() {
            part.note_free_space(short.then_some(free));
        }
        let shortage = short.then(|| {
            let released = match reserved > 0 && held == 0 {
                true => ", and the reserve is not there",
                false => "",
            };
            format!(
                "the disk of {} has {free} bytes free{released}, and {needed} are kept for trimming and \
                 flushing: make room, trim streams, or delete them",
                self.options.data_dir.display()
            )
        });
        self.space.shortage.lock().clone_from(&shortage);
        shortage
    }

    /// Logs that the disk has become nearly full, and that there is room again. Free space that varies a little
    /// around what is needed is logged once.
    fn log_shortage(&self, free: u64, needed: u64) {
        let logged = &self.space.shortage_logged;
        let Some(is_short) = shortage_to_log(logged.load(Ordering::Relaxed), free, needed) else {
            return;
        };
        if logged.swap(is_short, Ordering::Relaxed) == is_short {
            return;
        }
        match is_short {
            true => tracing::error!(
                dir = %self.options.data_dir.display(),
                free,
                reserve = needed,
                "The disk is nearly full: appends are refused until there is room"
            ),
            false => tracing::info!(free, "There is room on the disk again: appends are taken"),
        }
    }

    /// Allocates the reserve, or changes it to the size of the settings, if there is space beside what is
    /// kept free. May block.
    pub(crate) fn keep_reserve(&self) {
        let reserve = &self.space.reserve;
        metrics::gauge!("esker_reserve_bytes").set(reserve.held() as f64);
        self.note_released();
        let now = std::time::Instant::now();
        if !reserve.may_be_possible(now) {
            return;
        }
        let Some((free, all)) = file_system(&self.options.data_dir) else {
            return;
        };
        let (kept, reserved) = (self.kept(all), self.reserved(all));
        let held = reserve.held();
        // One that gets smaller takes no room.
        let has_room = held >= reserved || free >= kept + (reserved - held);
        if reserve.is_of(reserved) || !has_room {
            return;
        }
        let dir = self.options.data_dir.display();
        match reserve.keep(reserved, now) {
            Ok(false) => {}
            Ok(true) => tracing::debug!(%dir, bytes = reserved, "the reserve is taken"),
            Err(error) if !reserve.is_possible() => tracing::warn!(
                %dir,
                %error,
                "the file system sets no space aside: if others fill the disk, nothing may be left for trims and deletions"
            ),
            // There was less space than the file system reported, or a quota prevents it. It is tried again.
            Err(error) => tracing::debug!(%dir, %error, "the reserve is not taken"),
        }
    }

    /// Before a command that gives space back: releases the reserve if the disk is full, so that the command
    /// can be written and its garbage be removed. May block.
    pub(crate) fn release_reserve(&self) {
        if self.space.reserve.held() == 0 {
            return;
        }
        // Measured now, because the command is for a disk that was full a moment ago.
        let written = self.written();
        if self.is_release_due(written, file_system(&self.options.data_dir)) {
            self.note_release(self.space.reserve.release());
        }
    }

    /// The same from a task.
    async fn release_reserve_from_task(&self) {
        if self.space.reserve.held() == 0 {
            return;
        }
        let written = self.written();
        let dir = self.options.data_dir.clone();
        let is_due = match self.space.on_thread(move || file_system(&dir)).await {
            Some(found) => self.is_release_due(written, found),
            // It does not say in time. What was too little at the last look still is.
            None => self.is_short(),
        };
        if !is_due {
            return;
        }
        let reserve = self.space.reserve.clone();
        match self.space.on_thread(move || reserve.release()).await {
            Some(released) => self.note_release(released),
            // It is released to its end all the same, and noted at the next look.
            None => self.note_released(),
        }
    }

    /// Whether the disk is short of space, and less is free than the reserve holds.
    fn is_release_due(&self, written: u64, found: FileSystem) -> bool {
        let is_short = self.note_file_system(written, found).is_some();
        is_short && found.is_some_and(|(free, _)| free < self.space.reserve.held())
    }

    fn note_release(&self, released: io::Result<Option<u64>>) {
        let failed = released.is_err();
        let failed_before = self.space.release_fails.swap(failed, Ordering::Relaxed);
        if let Err(error) = released
            && !failed_before
        {
            let dir = self.options.data_dir.display();
            tracing::warn!(%dir, %error, "the reserve cannot be released");
        }
        self.note_released();
    }

    /// Notes that the reserve was released, if it was and nobody has noted it yet: whoever had it released may
    /// not have waited for the disk.
    fn note_released(&self) {
        let bytes = self.space.reserve.take_released();
        if bytes == 0 {
            return;
        }
        metrics::counter!("esker_reserve_released_total").increment(1);
        tracing::warn!(
            dir = %self.options.data_dir.display(),
            bytes,
            "The disk is full: the reserve is released for what gives space back, and taken again when there is room"
        );
        // What has failed for want of space need not wait for its next attempt.
        self.space.releases.fetch_add(1, Ordering::Relaxed);
        self.store.retry_now();
        self.space.log_keeper.wake();
    }

    /// The problem with the free space when it was last measured, if there was one.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.space.shortage.lock().clone()
    }

    /// The problem with the free space, if there is one. Free space is measured if it may be too little
    /// after the log writer has written `written` bytes.
    pub(crate) async fn shortage_at(&self, written: u64) -> Option<String> {
        let is_due = written >= self.space.free_limit.load(Ordering::Relaxed);
        match self.is_short() || is_due {
            true => self.check_from_task().await,
            false => None,
        }
    }

    /// The same for the bytes that are written now.
    pub(crate) async fn shortage_now(&self) -> Option<String> {
        self.shortage_at(self.written()).await
    }

    /// Whether the disk is full and the reserve is enough to rewrite the files of a partition without what
    /// is deleted: that gives back more than it takes.
    pub(crate) fn is_reserve_wanted(&self, part: &PartitionDb) -> bool {
        let garbage = part.reclaimable();
        let stays = part.file_bytes().saturating_sub(garbage);
        self.is_short() && garbage >= LITTLE && stays <= self.space.reserve.held()
    }

    /// Before a command that gives space back: releases the reserve on a full disk, and waits until the
    /// writes before the command are done. If that takes too long, the command is refused with the cause.
    pub(crate) async fn make_way(&self, group: &Group<Outcome>) {
        let deadline = Instant::now() + WAY_TIMEOUT;
        // What is under way is completed in any case, and noted at the next look.
        let _ = tokio::time::timeout_at(deadline, self.release_reserve_from_task()).await;
        while self.is_short() && group.status().stalled && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// How often the reserve was released since the start.
    pub(crate) fn releases(&self) -> u64 {
        self.space.releases.load(Ordering::Relaxed)
    }

    /// Whether less is free than is kept, when that was last measured.
    pub(crate) fn is_short(&self) -> bool {
        self.space.is_short.load(Ordering::Relaxed)
    }

    /// Whether, on a nearly full disk, a new snapshot of a partition would free files that only the one
    /// before, of this many bytes, still holds.
    pub(crate) fn could_release(&self, partition: u64, bytes: u64) -> bool {
        self.is_short() && bytes > self.partition_db(partition).file_bytes() + LITTLE
    }

    /// Why appends are refused after they have waited, if they are.
    pub(crate) fn stuck(&self) -> Option<String> {
        let is_stuck = self.space.is_stuck.load(Ordering::Relaxed) && self.log_is_over();
        is_stuck.then(|| "the log is larger than it may be, and cannot be trimmed".to_owned())
    }

    /// Waits until there is space for an append or a commit. For one that gives space back, the reserve is
    /// released if necessary.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`] if there is none in time, with the reason; [`Error::Stopping`].
    pub(crate) async fn wait_for_space(
        &self,
        part: &PartitionDb,
        usage: SpaceUse,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + SPACE_TIMEOUT;
        if usage == SpaceUse::GivesBack {
            self.make_way(self.group(part.partition().0)).await;
        }
        loop {
            // The count takes a lock, and each append comes here, so it is read once.
            let written = self.written();
            let takes_space = usage == SpaceUse::Takes;
            if takes_space && let Some(why) = self.shortage_at(written).await {
                return Err(Error::TryLater(why));
            }
            let log_is_over = self.log_is_over_at(written);
            if !(log_is_over || takes_space && part.reclaim_is_behind()) {
                return Ok(());
            }
            if self.draining.load(Ordering::Relaxed) {
                return Err(Error::Stopping);
            }
            let refuses = self.options.snapshots.on_log_full == OnLogFull::RefuseAppends;
            if log_is_over && (refuses || Instant::now() >= deadline) {
                self.space.is_stuck.store(true, Ordering::Relaxed);
                return Err(Error::TryLater(match refuses {
                    true => "the log is full: appends are refused until a snapshot is archived",
                    false => "the log is larger than max-log-bytes and could not be trimmed in time: see the server's log",
                }.to_owned()));
            }
            if !log_is_over && Instant::now() >= deadline {
                // A merge of another partition may delay this one's for minutes. The wait has slowed the
                // append down; what is kept free of the disk bounds the rest.
                return Ok(());
            }
            metrics::counter!("esker_append_space_waits_total").increment(1);
            if log_is_over {
                self.space.log_keeper.wake();
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_that_varies_around_what_is_kept_is_logged_once() {
        let mut logged = false;
        let mut lines = Vec::new();
        for free in [2000, 999, 1000, 999, 1001, 998, 1061, 997, 1063, 999, 1062] {
            if let Some(line) = shortage_to_log(logged, free, 1000) {
                logged = line;
                lines.push((free, line));
            }
        }
        assert_eq!(
            lines,
            [(999, true), (1063, false), (999, true), (1062, false)]
        );
    }
}
