//! A stream under soak: its name, its history, and what its clients know of it across kills.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use s2_sdk::types::StreamName;

use testkit_server::history::{checker::History, record::StreamTag, record_id::RecordId};

/// How a stream is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// By several writers at once, without conditions, one of them in append sessions.
    Plain,
    /// By one writer that demands the next sequence number with each append.
    Conditional,
    /// By one writer that holds the fencing token, against a rival that does not.
    Fenced,
}

/// A stream under soak.
pub struct Subject {
    /// Name of the stream.
    pub name: StreamName,
    /// The tag in its records.
    pub tag: StreamTag,
    /// How it is written to.
    pub usage: Usage,
    /// What was sent, answered and read.
    pub history: Mutex<History>,
    /// The fencing token that is in force, if that is certain.
    pub fence: Mutex<Option<String>>,
    /// Answers that were wrong whatever the stream holds.
    pub wrong_answers: Mutex<Vec<String>>,
    /// Numbers for writers and sessions. Both are unique within the stream.
    next_number: AtomicU32,
}

impl Subject {
    /// A stream to which nothing was sent yet.
    pub fn new(name: StreamName, tag: StreamTag, usage: Usage) -> Self {
        Self {
            name,
            tag,
            usage,
            history: Mutex::default(),
            fence: Mutex::default(),
            wrong_answers: Mutex::default(),
            next_number: AtomicU32::new(1),
        }
    }

    /// A number that no other writer or session of this stream has.
    pub fn new_number(&self) -> u32 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The first record of a new writer.
    pub fn new_writer(&self) -> RecordId {
        RecordId {
            writer: self.new_number(),
            index: 0,
        }
    }

    /// Records an answer that no server may give.
    pub fn wrong_answer(&self, what: String) {
        /// Most wrong answers that are recorded; the first ones show the fault.
        const NOTED_AT_MOST: usize = 20;
        let mut answers = self.wrong_answers.lock();
        if answers.len() < NOTED_AT_MOST {
            answers.push(what);
        }
    }
}
