//! The settings of a stream: arguments and printed form.

use std::time::Duration;

use clap::ValueEnum;
use esker_server::config::HumanDuration;
use s2_sdk::types::{
    DeleteOnEmptyConfig, DeleteOnEmptyReconfiguration, EncryptionAlgorithm, RetentionPolicy,
    StreamConfig, StreamReconfiguration, TimestampingConfig, TimestampingMode,
    TimestampingReconfiguration,
};
use serde_json::{Value, json};

/// How a stream keeps its records.
#[derive(clap::Args)]
pub struct Settings {
    /// How long records are kept: a duration such as 7d, or infinite [default: the basin's default, or 7d]
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    retention: Option<RetentionPolicy>,

    /// Delete the stream once it has been empty this long, or never [default: the basin's default, or never]
    #[arg(long, value_name = "DURATION", value_parser = delete_on_empty)]
    delete_on_empty: Option<Duration>,

    /// Where timestamps come from [default: the basin's default, or client-prefer]
    #[arg(long, value_name = "MODE")]
    timestamping: Option<Timestamping>,

    /// Take timestamps of the client that lie in the future as they are
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    uncapped_timestamps: Option<bool>,
}

/// How the records of a basin's streams are encrypted.
#[derive(clap::Args)]
pub struct CipherArgs {
    /// Encrypt the records of the basin's streams that are created from then on, with the key of each request
    #[arg(long, value_name = "CIPHER", help_heading = "Encryption")]
    pub stream_cipher: Option<Cipher>,
}

/// A cipher.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cipher {
    /// The faster one
    #[value(name = "aegis-256")]
    Aegis256,
    /// The one that standards ask for
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
}

impl From<Cipher> for EncryptionAlgorithm {
    fn from(cipher: Cipher) -> EncryptionAlgorithm {
        match cipher {
            Cipher::Aegis256 => EncryptionAlgorithm::Aegis256,
            Cipher::Aes256Gcm => EncryptionAlgorithm::Aes256Gcm,
        }
    }
}

/// Where the timestamps of records come from.
#[derive(Clone, Copy, ValueEnum)]
pub enum Timestamping {
    /// From the client if it gives one, else the time of arrival
    ClientPrefer,
    /// From the client; an append without one fails
    ClientRequire,
    /// The time of arrival, whatever the client says
    Arrival,
}

impl Settings {
    /// The settings for the API; `None` if none was given.
    pub fn config(&self) -> Option<StreamConfig> {
        let mut config = None;
        let mut set = |change: &dyn Fn(StreamConfig) -> StreamConfig| {
            config = Some(change(config.take().unwrap_or_default()));
        };
        if let Some(retention) = self.retention {
            set(&|config| config.with_retention_policy(retention));
        }
        if let Some(age) = self.delete_on_empty {
            set(&|config| {
                config.with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(age))
            });
        }
        if self.timestamping.is_some() || self.uncapped_timestamps.is_some() {
            let mut timestamping = TimestampingConfig::new();
            if let Some(mode) = self.timestamping {
                timestamping = timestamping.with_mode(mode.into());
            }
            if let Some(uncapped) = self.uncapped_timestamps {
                timestamping = timestamping.with_uncapped(uncapped);
            }
            set(&|config| config.with_timestamping(timestamping));
        }
        config
    }

    /// The changes to an existing stream; `None` if none was given. Settings that are not given stay
    /// unchanged.
    pub fn reconfiguration(&self) -> Option<StreamReconfiguration> {
        let mut config = None;
        let mut set = |change: &dyn Fn(StreamReconfiguration) -> StreamReconfiguration| {
            config = Some(change(config.take().unwrap_or_default()));
        };
        if let Some(retention) = self.retention {
            set(&|config| config.with_retention_policy(retention));
        }
        if let Some(age) = self.delete_on_empty {
            set(&|config| {
                config.with_delete_on_empty(DeleteOnEmptyReconfiguration::new().with_min_age(age))
            });
        }
        if self.timestamping.is_some() || self.uncapped_timestamps.is_some() {
            let mut timestamping = TimestampingReconfiguration::new();
            if let Some(mode) = self.timestamping {
                timestamping = timestamping.with_mode(mode.into());
            }
            if let Some(uncapped) = self.uncapped_timestamps {
                timestamping = timestamping.with_uncapped(uncapped);
            }
            set(&|config| config.with_timestamping(timestamping.clone()));
        }
        config
    }
}

impl From<Timestamping> for TimestampingMode {
    fn from(mode: Timestamping) -> TimestampingMode {
        match mode {
            Timestamping::ClientPrefer => TimestampingMode::ClientPrefer,
            Timestamping::ClientRequire => TimestampingMode::ClientRequire,
            Timestamping::Arrival => TimestampingMode::Arrival,
        }
    }
}

/// The settings of a stream as JSON; null where the server uses its default.
pub fn document(config: &StreamConfig) -> Value {
    let timestamping = config.timestamping.as_ref();
    json!({
        "retention": match config.retention_policy {
            None => Value::Null,
            Some(RetentionPolicy::Infinite) => "infinite".into(),
            Some(RetentionPolicy::Age(seconds)) => seconds.into(),
        },
        "delete_on_empty_seconds": config.delete_on_empty.as_ref().map(|it| it.min_age_secs),
        "timestamping": timestamping.and_then(|it| it.mode).map(mode_name),
        "uncapped_timestamps": timestamping.and_then(|it| it.uncapped),
    })
}

/// The settings of a stream for people: names and values.
pub fn rows(config: &StreamConfig) -> [(&'static str, String); 4] {
    let timestamping = config.timestamping.as_ref();
    let or_default = |text: Option<String>| text.unwrap_or_else(|| "default".to_owned());
    let seconds = |seconds| HumanDuration::from_secs(seconds).to_string();
    let retention = config.retention_policy.map(|policy| match policy {
        RetentionPolicy::Infinite => "infinite".to_owned(),
        RetentionPolicy::Age(age) => seconds(age),
    });
    let delete_on_empty = config
        .delete_on_empty
        .as_ref()
        .map(|it| match it.min_age_secs {
            0 => "never".to_owned(),
            age => seconds(age),
        });
    let mode = timestamping.and_then(|it| it.mode);
    let uncapped = timestamping.and_then(|it| it.uncapped);
    [
        ("retention", or_default(retention)),
        ("delete on empty", or_default(delete_on_empty)),
        (
            "timestamping",
            or_default(mode.map(|mode| mode_name(mode).to_owned())),
        ),
        (
            "uncapped timestamps",
            or_default(uncapped.map(|it| it.to_string())),
        ),
    ]
}

fn mode_name(mode: TimestampingMode) -> &'static str {
    match mode {
        TimestampingMode::ClientPrefer => "client-prefer",
        TimestampingMode::ClientRequire => "client-require",
        TimestampingMode::Arrival => "arrival",
    }
}

/// A duration, or `never`.
fn delete_on_empty(text: &str) -> Result<Duration, String> {
    match text {
        "never" => Ok(Duration::ZERO),
        text => whole_seconds(text).map_err(|problem| format!("{problem}, or `never`")),
    }
}

fn retention(text: &str) -> Result<RetentionPolicy, String> {
    if text == "infinite" {
        return Ok(RetentionPolicy::Infinite);
    }
    match whole_seconds(text) {
        Ok(age) => Ok(RetentionPolicy::Age(age.as_secs())),
        Err(problem) => Err(format!("{problem}, or `infinite`")),
    }
}

/// A duration of at least a second, because the API counts in whole seconds.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = text
        .parse::<HumanDuration>()
        .map_err(|_| "write a duration such as 30s, 10m, 12h or 7d".to_owned())?
        .as_duration();
    if duration.as_secs() == 0 || duration.subsec_nanos() != 0 {
        return Err("write a duration in whole seconds, one at least".into());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_a_duration_or_infinite() {
        assert_eq!(retention("infinite"), Ok(RetentionPolicy::Infinite));
        assert_eq!(retention("7d"), Ok(RetentionPolicy::Age(7 * 24 * 3600)));
        assert_eq!(retention("1h 30m"), Ok(RetentionPolicy::Age(5400)));
        for text in ["forever", "0s", "500ms", "7"] {
            let problem = retention(text).unwrap_err();
            assert!(problem.contains("or `infinite`"), "{text}: {problem}");
        }
    }
}
