//! Configuration of `esker server`: one TOML file, every key of which the environment and the
//! command line can override.
//!
//! # Roles
//!
//! - [`Config`] is the whole configuration as plain values ([`values`]); sizes and durations have
//!   types of their own ([`units`]).
//! - `Keys` (`key`) is the list of all keys, made from the JSON schema of [`Config`]: where a key
//!   lives, its kind, its bounds, its default and its description. The reader, the checks and the
//!   documentation all use it, so a bound or a sentence is written in one place only: at the field.
//! - `Kind` (`kind`) is what a value of a key may look like. It turns what a source has into that value,
//!   or explains why it cannot; `destination_url` does so for destinations and endpoints.
//! - [`Secret`] is a value that is never shown.
//! - [`Source`] is where a value came from; every message about a value names it.
//! - [`Overrides`] are the command-line flags.
//!
//! # Flow
//!
//! [`load`] gathers `(key, text, source)` from the file (`file`), the environment (`environment`) and the
//! flags (`overrides`), applies them in that order onto the defaults, and then checks the whole
//! (`check`): bounds of each value, and rules between values. It collects every problem before it
//! returns, so that a file with three mistakes is corrected once. [`show`] prints the result as TOML that
//! loads to the same configuration; [`markdown`] is `docs/operating/configuration.md`.
//!
//! Precedence: flag, then environment, then file, then default. No file is read unless it is named.
//!
//! This module does not depend on what the values are for: it opens no data directory and binds no
//! socket, and from outside it reads only the one named file. The environment is passed in.

mod check;
mod cluster;
mod destination_url;
mod docs;
mod environment;
mod error;
mod file;
mod key;
mod kind;
mod load;
mod overrides;
mod secret;
mod setting;
mod show;
pub mod snapshots;
mod source;
pub mod state;
mod statehouse;
mod suggest;
mod tls;
pub mod traces;
pub mod units;
pub mod values;
mod variables;

pub use cluster::ClusterConfig;
pub use docs::markdown;
pub use environment::{BOOTSTRAP_VARIABLE, CONFIG_VARIABLE, environment};
pub use error::{CODES, ConfigError};
pub use load::{Loaded, load};
pub use overrides::Overrides;
pub use secret::Secret;
pub use show::{show, show_json};
pub use snapshots::{OnLogFull, SnapshotKind, SnapshotsConfig};
pub use source::Source;
pub use state::StateConfig;
pub use tls::TlsConfig;
pub use traces::TracesConfig;
pub use units::{ByteCount, HumanDuration};
pub use values::{
    Config, LimitsConfig, LogConfig, LogFormat, LogsConfig, RetentionConfig, StoreConfig,
};

#[cfg(test)]
mod tests;
