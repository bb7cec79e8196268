//! Reads the items in a batch's footer: the bytes of its entries, and what it does to its groups.
//!
//! ```text
//! items   = count, item*                        numbers are LEB128 varints
//! item    = group, 1, entries | group, 2, command | group, 3, key and value
//! entries = count, [index of the first, end*]   ends of the entries, counted from the first entry
//!                                               of the whole batch
//! command = 1 (clean) | 2, index (compact)
//! kv      = 1, key, value (put) | 2, key (delete)    each a length and so many bytes
//! ```

use std::io;

use super::groups::Mark;
use super::spans::Change;
use super::window::Window;
use crate::log::NODE_REGION;
use crate::log::extents::KEY_EXTENTS;

/// raft-engine's key of the mark that makes a batch a part of an atomic group.
const ATOMIC_GROUP_KEY: &[u8] = b"__\x01";
/// Longest key that is compared, in bytes.
const MAX_KEY_BYTES: usize = 16;

/// The uncompressed bytes of all entries of a batch, according to its items in `[from, to)`, and what the
/// items do to their groups. `None` if that is not a list of items. The caller has verified the checksum.
pub(super) fn read(
    reader: &mut Window,
    from: u64,
    to: u64,
) -> io::Result<Option<(u64, Vec<Change>)>> {
    let mut items = Items {
        reader,
        at: from,
        to,
        changes: Vec::new(),
    };
    match items.sum() {
        Ok(sum) => Ok((items.at == to).then_some((sum, items.changes))),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(e) => Err(e),
    }
}

struct Items<'a> {
    reader: &'a mut Window,
    at: u64,
    to: u64,
    changes: Vec<Change>,
}

impl Items<'_> {
    fn sum(&mut self) -> io::Result<u64> {
        let mut sum = 0;
        for _ in 0..self.number()? {
            let region = self.number()?;
            match self.byte()? {
                1 => {
                    let count = self.number()?;
                    if count > 0 {
                        let first = self.number()?;
                        let last = first.checked_add(count - 1).ok_or_else(malformed)?;
                        self.changes.push(Change::Entries {
                            region,
                            first,
                            last,
                        });
                    }
                    for _ in 0..count {
                        // Ends rise throughout the batch, so the last one is the sum. No entry is empty: each
                        // has an index.
                        let end = self.number()?;
                        if end <= sum {
                            return Err(malformed());
                        }
                        sum = end;
                    }
                }
                2 => match self.byte()? {
                    1 => self.changes.push(Change::Clean { region }),
                    2 => {
                        let index = self.number()?;
                        self.changes.push(Change::Compact { region, index });
                    }
                    _ => return Err(malformed()),
                },
                3 => match self.byte()? {
                    1 => self.put(region)?,
                    2 => self.skip()?,
                    _ => return Err(malformed()),
                },
                _ => return Err(malformed()),
            }
        }
        Ok(sum)
    }

    /// A key and its value; only some keys matter here.
    fn put(&mut self, region: u64) -> io::Result<()> {
        let key_len = self.len()?;
        let mut key = [0; MAX_KEY_BYTES];
        let key = match key.get_mut(..usize::try_from(key_len).unwrap_or(usize::MAX)) {
            Some(key) => {
                self.reader.read_exact(self.at, key)?;
                key
            }
            None => &mut [],
        };
        self.at += key_len;
        let value_len = self.len()?;
        if *key == *ATOMIC_GROUP_KEY {
            let mark = Mark::parse(self.byte()?).filter(|_| value_len == 1);
            // raft-engine's number of the atomic group takes the place of that of the group.
            let (id, mark) = (region, mark.ok_or_else(malformed)?);
            self.changes.push(Change::Mark { id, mark });
            return Ok(());
        }
        self.changes.push(Change::Put { region });
        if region == NODE_REGION && *key == *KEY_EXTENTS {
            let mut note = vec![0; usize::try_from(value_len).unwrap_or(usize::MAX)];
            self.reader.read_exact(self.at, &mut note)?;
            self.changes.push(Change::Note(note));
        }
        self.at += value_len;
        Ok(())
    }

    /// Skips a length and so many bytes.
    fn skip(&mut self) -> io::Result<()> {
        self.at += self.len()?;
        Ok(())
    }

    /// A length of what is there.
    fn len(&mut self) -> io::Result<u64> {
        let len = self.number()?;
        if len > self.to - self.at {
            return Err(malformed());
        }
        Ok(len)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(malformed())
    }

    fn byte(&mut self) -> io::Result<u8> {
        if self.at >= self.to {
            return Err(malformed());
        }
        // Inside the file, so the chunk is not empty.
        let byte = *self.reader.chunk(self.at)?.first().ok_or_else(malformed)?;
        self.at += 1;
        Ok(byte)
    }
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
