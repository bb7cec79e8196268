//! The `slog` logger that raft-rs needs: it forwards to `tracing`.

use std::fmt::Write as _;

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, o};

struct ToTracing;

struct Pairs(String);

impl slog::Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(Into::into)
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        // raft-rs's information is detail for whoever operates a server.
        let shown = match record.level() {
            Level::Critical | Level::Error => tracing::enabled!(tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(tracing::Level::WARN),
            Level::Info | Level::Debug => tracing::enabled!(tracing::Level::DEBUG),
            Level::Trace => tracing::enabled!(tracing::Level::TRACE),
        };
        if !shown {
            return Ok(());
        }
        let mut pairs = Pairs(String::new());
        // Formatting into a string does not fail.
        let _ = record.kv().serialize(record, &mut pairs);
        let Pairs(pairs) = pairs;
        match record.level() {
            Level::Critical | Level::Error => tracing::error!("{}{pairs}", record.msg()),
            Level::Warning => tracing::warn!("{}{pairs}", record.msg()),
            Level::Info | Level::Debug => tracing::debug!("{}{pairs}", record.msg()),
            Level::Trace => tracing::trace!("{}{pairs}", record.msg()),
        }
        Ok(())
    }
}

/// A logger for raft-rs.
pub(crate) fn raft_logger() -> Logger {
    Logger::root(ToTracing, o!())
}
