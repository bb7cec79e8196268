//! Splits a file or standard input into lines, and gathers them into batches of records: each line is a body,
//! or a record as JSON.
//!
//! A thread reads, because reading standard input blocks. A batch is sent when it is full, or when the next
//! line is not available yet: typed lines are sent at every Enter, lines from a pipe as fast as they arrive,
//! and a file in the largest batches.

use std::io::{BufRead, BufReader, Read};

use s2_sdk::types::{AppendRecord, AppendRecordBatch, MeteredBytes as _, RECORD_BATCH_MAX};
use tokio::sync::mpsc;

use super::json_record::{self, Numbers};
use super::read::Format;

/// Bytes read at a time; also about as much as one batch.
const READ_SIZE: usize = 1024 * 1024;
/// Batches that wait for the session, each of at most 1 MiB.
const BATCHES_AHEAD: usize = 4;
/// Metered bytes of a record without headers, beyond its body.
const RECORD_OVERHEAD: usize = 8;
/// Longest line: one record.
const LINE_MAX: usize = RECORD_BATCH_MAX.bytes - RECORD_OVERHEAD;
/// Longest line of JSON: a byte of a record is written with at most six characters (`\u0000`), and names and
/// numbers come on top.
const JSON_LINE_MAX: usize = 6 * RECORD_BATCH_MAX.bytes + 4096;

/// The records of one batch.
#[derive(Debug)]
pub struct Batch {
    /// A record for each line, without its line feed.
    pub records: AppendRecordBatch,
    /// Bytes of the lines, line feeds included.
    pub read: u64,
}

/// Why reading ended before the end of the input.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Reading failed.
    #[error("reading line {line}: {source}")]
    Read {
        /// The line, counted from 1.
        line: u64,
        /// What happened.
        source: std::io::Error,
    },
    /// A line is longer than a record may be.
    #[error("line {line} is longer than a record may be ({most} bytes)")]
    TooLong {
        /// The line, counted from 1.
        line: u64,
        /// The most bytes that it may have.
        most: usize,
    },
    /// A line of JSON is no record.
    #[error("line {line} is no record: {why}")]
    NoRecord {
        /// The line, counted from 1.
        line: u64,
        /// Why.
        why: String,
    },
}

/// Starts to read; the first record is appended at `tail`. The channel closes at the end of the input, and
/// after an error. If the channel is dropped, the reader stops at the next batch; a reader that waits for
/// standard input stays until then.
pub fn read(
    input: impl Read + Send + 'static,
    format: Format,
    tail: u64,
) -> mpsc::Receiver<Result<Batch, LineError>> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    std::thread::spawn(move || {
        let mut reader = Reader {
            input: BufReader::with_capacity(READ_SIZE, input),
            format,
            line: 0,
            numbers: Numbers {
                base: tail,
                next: tail,
            },
            overflow: None,
        };
        while let Some(batch) = reader.batch().transpose() {
            let failed = batch.is_err();
            if sender.blocking_send(batch).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

struct Reader<R> {
    input: BufReader<R>,
    format: Format,
    /// The last line that was read, counted from 1.
    line: u64,
    numbers: Numbers,
    /// The record, or the error, that ended the last batch early and comes after it.
    overflow: Option<Result<(AppendRecord, u64), LineError>>,
}

impl<R: Read> Reader<R> {
    /// The next batch; `None` at the end.
    fn batch(&mut self) -> Result<Option<Batch>, LineError> {
        let mut records = Vec::new();
        let mut metered = 0;
        let mut read = 0;
        loop {
            let next = match self.overflow.take() {
                Some(next) => next.map(Some),
                None => self.record(),
            };
            let (record, bytes) = match next {
                Ok(Some(record)) => record,
                Ok(None) => break,
                // The records before it are appended first.
                Err(error) if !records.is_empty() => {
                    self.overflow = Some(Err(error));
                    break;
                }
                Err(error) => return Err(error),
            };
            let size = record.metered_bytes();
            if metered + size > RECORD_BATCH_MAX.bytes {
                self.overflow = Some(Ok((record, bytes)));
                break;
            }
            metered += size;
            read += bytes;
            records.push(record);
            if records.len() == RECORD_BATCH_MAX.count || !self.has_line() {
                break;
            }
        }
        if records.is_empty() {
            return Ok(None);
        }
        let records =
            AppendRecordBatch::try_from_iter(records).map_err(|e| self.no_record(e.to_string()))?;
        Ok(Some(Batch { records, read }))
    }

    /// Whether a line with a record is buffered, so that reading it does not block.
    fn has_line(&self) -> bool {
        let buffer = self.input.buffer();
        match self.format {
            Format::Text => buffer.contains(&b'\n'),
            Format::Json => {
                let whole = buffer.iter().rposition(|byte| *byte == b'\n');
                whole.is_some_and(|end| !buffer[..end].trim_ascii().is_empty())
            }
        }
    }

    /// The next line without its line feed, and the number of its bytes including that.
    fn line(&mut self) -> Result<Option<(Vec<u8>, u64)>, LineError> {
        let mut line = Vec::new();
        let most = match self.format {
            Format::Text => LINE_MAX,
            Format::Json => JSON_LINE_MAX,
        };
        // One byte more than is allowed, and the line feed.
        let limit = most as u64 + 2;
        self.line += 1;
        let bytes = (&mut self.input)
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(|source| LineError::Read {
                line: self.line,
                source,
            })?;
        if bytes == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > most {
            return Err(LineError::TooLong {
                line: self.line,
                most,
            });
        }
        Ok(Some((line, bytes as u64)))
    }

    /// The record of the next line, and the bytes of the lines that were read for it.
    fn record(&mut self) -> Result<Option<(AppendRecord, u64)>, LineError> {
        let mut passed = 0;
        while let Some((line, bytes)) = self.line()? {
            let record = match self.format {
                Format::Text => AppendRecord::new(line).map_err(|e| e.0),
                // Empty lines between documents are allowed.
                Format::Json if line.trim_ascii().is_empty() => {
                    passed += bytes;
                    continue;
                }
                Format::Json => json_record::read(&line, self.numbers),
            };
            let record = record.map_err(|why| self.no_record(why))?;
            self.numbers.next += 1;
            return Ok(Some((record, passed + bytes)));
        }
        Ok(None)
    }

    fn no_record(&self, why: String) -> LineError {
        LineError::NoRecord {
            line: self.line,
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// The bodies of each batch.
    fn batches(input: impl Read + Send + 'static) -> (Vec<Vec<Vec<u8>>>, Option<LineError>) {
        let mut receiver = read(input, Format::Text, 0);
        let mut batches = Vec::new();
        while let Some(batch) = receiver.blocking_recv() {
            match batch {
                Ok(batch) => {
                    batches.push(batch.records.iter().map(|r| r.body().to_vec()).collect());
                }
                Err(error) => return (batches, Some(error)),
            }
        }
        (batches, None)
    }

    /// A reader that returns one piece after the other, each when the splitter reads it.
    struct Pieces(std::sync::mpsc::Receiver<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            // When the sender is dropped, the input ends.
            let piece = self.0.recv().unwrap_or_default();
            to[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_record_of_json_is_not_held_back_by_an_empty_line_behind_it() {
        let (give, pieces) = std::sync::mpsc::channel();
        let mut receiver = read(Pieces(pieces), Format::Json, 0);
        give.send(&b"{\"body\":\"a\"}\n\n"[..]).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let batch = loop {
            match receiver.try_recv() {
                Ok(batch) => break batch.unwrap(),
                Err(_) => assert!(std::time::Instant::now() < deadline, "it is held back"),
            }
            std::thread::yield_now();
        };
        assert_eq!(batch.records.iter().next().unwrap().body(), b"a");
        give.send(b"\n{\"body\":\"b\"}\n").unwrap();
        drop(give);
        let batch = receiver.blocking_recv().unwrap().unwrap();
        assert_eq!(batch.records.iter().next().unwrap().body(), b"b");
        assert!(receiver.blocking_recv().is_none());
    }

    #[test]
    fn every_line_is_a_record_also_empty_ones_and_the_last_without_a_line_feed() {
        let (batches, error) = batches(Cursor::new(b"a\n\nb\r\n\xff\xfe\nlast".to_vec()));
        assert!(error.is_none());
        let lines: Vec<Vec<u8>> = batches.into_iter().flatten().collect();
        let expected: [&[u8]; 5] = [b"a", b"", b"b\r", b"\xff\xfe", b"last"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_file_is_cut_at_a_thousand_records_and_at_a_mebibyte() {
        let (batches, _) = self::batches(Cursor::new("x\n".repeat(2500)));
        assert_eq!(
            batches.iter().map(Vec::len).collect::<Vec<_>>(),
            [1000, 1000, 500]
        );

        let line = "y".repeat(300_000) + "\n";
        let (batches, _) = self::batches(Cursor::new(line.repeat(7)));
        let sizes: Vec<usize> = batches
            .iter()
            .map(|b| b.iter().map(|l| l.len() + RECORD_OVERHEAD).sum())
            .collect();
        assert!(
            sizes.iter().all(|&s| s <= RECORD_BATCH_MAX.bytes),
            "{sizes:?}"
        );
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 7);
    }

    #[test]
    fn the_longest_line_is_a_record_and_one_byte_more_is_refused_by_its_number() {
        let longest = vec![b'z'; LINE_MAX];
        let (batches, error) = batches(Cursor::new(longest.clone()));
        assert!(error.is_none());
        assert_eq!(batches, [[longest]]);

        let mut input = b"first\n".to_vec();
        input.extend(vec![b'z'; LINE_MAX + 1]);
        let (batches, error) = self::batches(Cursor::new(input));
        assert_eq!(batches, [[b"first".to_vec()]], "what came before it counts");
        let message = error.unwrap().to_string();
        assert!(message.contains("line 2 "), "{message}");
    }

    #[test]
    fn a_line_goes_out_at_once_when_the_next_is_not_there_yet() {
        struct Typist(Vec<&'static [u8]>);
        impl Read for Typist {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let Some(typed) = (!self.0.is_empty()).then(|| self.0.remove(0)) else {
                    return Ok(0);
                };
                buffer[..typed.len()].copy_from_slice(typed);
                Ok(typed.len())
            }
        }
        let (batches, _) = batches(Typist(vec![b"one\n", b"two\nthr", b"ee\n"]));
        assert_eq!(
            batches,
            [
                vec![b"one".to_vec()],
                vec![b"two".to_vec()],
                vec![b"three".to_vec()]
            ]
        );
    }

    #[test]
    fn lines_of_json_are_records_and_one_that_is_none_is_named_by_its_number() {
        let input = "{\"body\":\"a\"}\n\n{\"body\":\"b\",\"headers\":[[\"k\",\"v\"]]}\n{}\n";
        let mut receiver = read(Cursor::new(input), Format::Json, 0);
        let batch = receiver.blocking_recv().unwrap().unwrap();
        let bodies: Vec<_> = batch.records.iter().map(|it| it.body().to_vec()).collect();
        assert_eq!(bodies, [b"a", b"b"]);
        assert_eq!(
            batch
                .records
                .iter()
                .map(|it| it.headers().len())
                .sum::<usize>(),
            1
        );
        assert_eq!(batch.read as usize, input.len() - "{}\n".len());
        let problem = receiver.blocking_recv().unwrap().unwrap_err().to_string();
        assert!(problem.starts_with("line 4 is no record: "), "{problem}");
        assert!(receiver.blocking_recv().is_none());
    }
}
