//! One stream: what is missing in the copy, its records, and its settings.

use std::str::FromStr as _;
use std::time::Duration;

use s2_sdk::error::ErrorCode;
use s2_sdk::types::{
    CreateStreamInput, DeleteOnEmptyReconfiguration, ListStreamsInput, ReconfigureStreamInput,
    RetentionPolicy, StreamConfig, StreamNamePrefix, StreamReconfiguration, TimestampingMode,
    TimestampingReconfiguration,
};

use super::front::is_filler;
use super::records::{
    Session, append, are_equal, conflict, copy_of, range, record_at, tail_of, trimmed,
};
use super::{Import, Mode};
use crate::failure::Failure;
use crate::follow_cmd::progress::Records;
use crate::stream_cmd::target::StreamTarget;

/// What was done with a stream.
pub struct Done {
    /// Where both begin.
    pub head: u64,
    /// Where both end.
    pub tail: u64,
    /// Records that were copied, or are to be.
    pub copied: u64,
    /// Records that are equal in both.
    pub compared: u64,
}

impl Import {
    /// Copies or compares a stream, which may be encrypted in the source.
    pub async fn stream(&self, target: &StreamTarget, is_encrypted: bool) -> Result<Done, Failure> {
        let (first, tail) = range(&self.source, target).await?;
        let copied = match self.mode {
            Mode::Verify => {
                let theirs = tail_of(&self.target, target).await?;
                if theirs != Some(tail) {
                    let theirs = theirs.map_or("it is not there".to_owned(), |theirs| {
                        format!("it ends at {theirs}")
                    });
                    return Err(Failure::wrong(
                        "import_differs",
                        format!("{target} ends at {tail} in the source, and in the copy {theirs}"),
                    ));
                }
                0
            }
            Mode::DryRun => {
                let begun = tail_of(&self.target, target).await?.unwrap_or(0);
                let copied = tail.saturating_sub(begun.max(first));
                return Ok(Done {
                    head: first,
                    tail,
                    copied,
                    compared: 0,
                });
            }
            Mode::Copy => self.copy(target, first, tail, is_encrypted).await?,
        };
        if self.mode == Mode::Verify && is_encrypted {
            self.check_encrypted(target).await?;
        }
        let (head, compared) = self.compare(target, tail).await?;
        Ok(Done {
            head,
            tail,
            copied,
            compared,
        })
    }

    /// Appends what is missing. Returns the number of records.
    async fn copy(
        &self,
        target: &StreamTarget,
        first: u64,
        tail: u64,
        is_encrypted: bool,
    ) -> Result<u64, Failure> {
        let asked = self.source.asked_stream(target);
        let config = self
            .source
            .basin(&target.basin)
            .get_stream_config(target.stream.clone())
            .await;
        let config = config.map_err(|e| asked.request(&e))?;
        self.ensure_stream(target, &config).await?;
        if is_encrypted {
            self.check_encrypted(target).await?;
        }
        let begun = tail_of(&self.target, target).await?.unwrap_or(0);
        if begun > tail {
            return Err(conflict(
                target,
                &format!("it ends at {begun}, and the source at {tail}"),
            ));
        }
        self.check_begun(target, first, begun).await?;
        let mut copied = 0;
        if begun < tail {
            self.reconfigure(target, while_copying()).await?;
            if begun < first {
                self.fill(target, begun, first).await?;
            }
            copied = self.copy_records(target, begun.max(first), tail).await?;
        }
        // Also where nothing was missing: an earlier run may have ended before it.
        self.reconfigure(target, afterwards(&config)).await?;
        Ok(copied)
    }

    /// Checks that records of a stream that is encrypted in the source are not stored as plain text here. The
    /// basin has the cipher of new streams, which may be another than that of an earlier one.
    async fn check_encrypted(&self, target: &StreamTarget) -> Result<(), Failure> {
        let prefix = StreamNamePrefix::from_str(&target.stream);
        let prefix = prefix.map_err(|e| Failure::wrong("client", e.0))?;
        let page = ListStreamsInput::new().with_prefix(prefix).with_limit(1);
        let page = self.target.basin(&target.basin).list_streams(page).await;
        let page = page.map_err(|e| self.target.asked_stream(target).request(&e))?;
        let mut found = page.values.into_iter();
        match found.find(|info| info.name == target.stream) {
            Some(info) if info.cipher.is_none() => Err(Failure::wrong(
                "import_conflict",
                format!("{target} is encrypted in the source, and not here"),
            )
            .advise(format!(
                "give the basin {} a cipher, delete the stream here, and run the import again",
                target.basin
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that what is in the target is the beginning of a copy, before anything is appended to it: its first
    /// and its last record are those of the source, or of a front that was being filled.
    async fn check_begun(
        &self,
        target: &StreamTarget,
        first: u64,
        begun: u64,
    ) -> Result<(), Failure> {
        let head = match begun {
            0 => 0,
            _ => range(&self.target, target).await?.0,
        };
        // Where no record is left, none is mixed with others.
        if head >= begun {
            return match begun > first {
                true => Err(conflict(
                    target,
                    &format!(
                        "it has no record before {begun}, and the source has those from {first}"
                    ),
                )),
                false => Ok(()),
            };
        }
        let begins = if begun > first { head.max(first) } else { head };
        for at in [begins, begun - 1] {
            let ours = record_at(&self.target, target, at).await?;
            let is_copy = match at < first {
                true => ours.as_ref().is_some_and(is_filler),
                false => {
                    let theirs = record_at(&self.source, target, at).await?;
                    let both = ours.as_ref().zip(theirs.as_ref());
                    both.is_some_and(|(ours, theirs)| are_equal(ours, theirs))
                }
            };
            if is_copy {
                continue;
            }
            if at < first {
                return Err(conflict(
                    target,
                    &format!(
                        "the source begins at {first} now, and no longer has the record at {at} to compare"
                    ),
                ));
            }
            match range(&self.source, target).await?.0 > at {
                // It was trimmed or has expired meanwhile. The last record decides.
                true if at + 1 < begun => {}
                true => return Err(trimmed(target, at)),
                false => return Err(conflict(target, &format!("the record at {at} is another"))),
            }
        }
        Ok(())
    }

    /// Creates the stream. One that exists is continued.
    async fn ensure_stream(
        &self,
        target: &StreamTarget,
        config: &StreamConfig,
    ) -> Result<(), Failure> {
        // Deletion when it is empty is set at the end: it is empty now.
        let mut created = config.clone();
        created.delete_on_empty = None;
        let input = CreateStreamInput::new(target.stream.clone()).with_config(created);
        match self.target.basin(&target.basin).create_stream(input).await {
            Ok(_) => Ok(()),
            Err(error) => match error.server_error().and_then(|error| error.known_code()) {
                Some(ErrorCode::ResourceAlreadyExists) => Ok(()),
                _ => Err(self.target.asked_stream(target).request(&error)),
            },
        }
    }

    async fn reconfigure(
        &self,
        target: &StreamTarget,
        change: StreamReconfiguration,
    ) -> Result<(), Failure> {
        let input = ReconfigureStreamInput::new(target.stream.clone(), change);
        let done = self
            .target
            .basin(&target.basin)
            .reconfigure_stream(input)
            .await;
        done.map(|_| ())
            .map_err(|e| self.target.asked_stream(target).request(&e))
    }

    /// Appends the records of these positions, in batches as the source sends them.
    async fn copy_records(
        &self,
        target: &StreamTarget,
        from: u64,
        to: u64,
    ) -> Result<u64, Failure> {
        let bar = Records::new(from, to);
        let mut session = Session::open(&self.source, target, from, to).await?;
        let mut next = from;
        while let Some(records) = session.next().await? {
            let Some(last) = records.last().map(|record| record.seq_num) else {
                continue;
            };
            for record in &records {
                if record.seq_num != next {
                    return Err(Failure::wrong(
                        "import_gap",
                        format!(
                            "after {} comes {} in {target}: the source passed positions over, or was trimmed \
                             meanwhile",
                            next.saturating_sub(1),
                            record.seq_num
                        ),
                    )
                    .advise("run it again; if this error comes again, positions cannot be kept"));
                }
                next += 1;
            }
            let at = last + 1 - records.len() as u64;
            let records = records
                .into_iter()
                .map(copy_of)
                .collect::<Result<Vec<_>, _>>()?;
            append(&self.target, target, records, at).await?;
            bar.at(next);
        }
        bar.clear();
        match next == to {
            true => Ok(to - from),
            false => Err(Failure::wrong(
                "import_gap",
                format!("the source sent the records of {target} to {next}, and they end at {to}"),
            )
            .advise("run it again")),
        }
    }
}

/// The settings with which the timestamps of records are kept.
fn while_copying() -> StreamReconfiguration {
    let timestamping = TimestampingReconfiguration::new()
        .with_mode(TimestampingMode::ClientPrefer)
        .with_uncapped(true);
    let never = DeleteOnEmptyReconfiguration::new().with_min_age(Duration::ZERO);
    StreamReconfiguration::new()
        .with_timestamping(timestamping)
        .with_delete_on_empty(never)
}

/// The settings of the source.
fn afterwards(config: &StreamConfig) -> StreamReconfiguration {
    let timestamping = config.timestamping.unwrap_or_default();
    let timestamping = TimestampingReconfiguration::new()
        .with_mode(timestamping.mode.unwrap_or(TimestampingMode::ClientPrefer))
        .with_uncapped(timestamping.uncapped.unwrap_or(false));
    let age = config
        .delete_on_empty
        .as_ref()
        .map_or(0, |it| it.min_age_secs);
    let age = DeleteOnEmptyReconfiguration::new().with_min_age(Duration::from_secs(age));
    let change = StreamReconfiguration::new()
        .with_timestamping(timestamping)
        .with_delete_on_empty(age);
    match config.retention_policy {
        Some(RetentionPolicy::Infinite) => change.with_retention_policy(RetentionPolicy::Infinite),
        Some(policy) => change.with_retention_policy(policy),
        None => change,
    }
}
