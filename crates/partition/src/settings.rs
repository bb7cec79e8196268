//! Stored settings of basins and streams: protobuf forms of the types of `s2-common`.

use std::time::Duration;

use compact_str::CompactString;
use s2_common::config::{
    BasinConfig, DeleteOnEmptyConfig, OptionalDeleteOnEmptyConfig, OptionalStreamConfig,
    OptionalTimestampingConfig, RetentionPolicy, StreamConfig, TimestampingConfig,
    TimestampingMode,
};

use crate::encryption::{UnknownCipher, cipher_number, cipher_of};

/// Settings of a stream; a field that is not set is `None`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StreamSettings {
    /// Storage class; it is stored and returned, and has no effect.
    #[prost(string, optional, tag = "1")]
    pub storage_class: Option<String>,
    /// Age in seconds after which records expire; 0 for never.
    #[prost(uint64, optional, tag = "2")]
    pub retention_age_secs: Option<u64>,
    /// 0 client-prefer, 1 client-require, 2 arrival.
    #[prost(uint32, optional, tag = "3")]
    pub timestamping_mode: Option<u32>,
    /// Whether timestamps may be in the future.
    #[prost(bool, optional, tag = "4")]
    pub timestamping_uncapped: Option<bool>,
    /// Seconds that a stream must have been empty before it is deleted; 0 for never.
    #[prost(uint64, optional, tag = "5")]
    pub delete_on_empty_secs: Option<u64>,
}

/// Settings of a basin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BasinSettings {
    /// Defaults for streams that do not set their own.
    #[prost(message, required, tag = "1")]
    pub default_stream: StreamSettings,
    /// Whether an append creates a missing stream.
    #[prost(bool, tag = "2")]
    pub create_stream_on_append: bool,
    /// Whether a read creates a missing stream.
    #[prost(bool, tag = "3")]
    pub create_stream_on_read: bool,
    /// The cipher of streams that are created from now on, as [`cipher_number`] has it; 0 for none.
    #[prost(uint32, tag = "4")]
    pub stream_cipher: u32,
}

fn mode_number(mode: TimestampingMode) -> u32 {
    match mode {
        TimestampingMode::ClientPrefer => 0,
        TimestampingMode::ClientRequire => 1,
        TimestampingMode::Arrival => 2,
    }
}

fn mode_of(number: u32) -> TimestampingMode {
    match number {
        1 => TimestampingMode::ClientRequire,
        2 => TimestampingMode::Arrival,
        _ => TimestampingMode::ClientPrefer,
    }
}

fn retention_secs(policy: RetentionPolicy) -> u64 {
    policy.age().map_or(0, |age| age.as_secs().max(1))
}

fn retention_of(secs: u64) -> RetentionPolicy {
    match secs {
        0 => RetentionPolicy::Infinite(),
        secs => RetentionPolicy::Age(Duration::from_secs(secs)),
    }
}

impl From<&OptionalStreamConfig> for StreamSettings {
    fn from(config: &OptionalStreamConfig) -> Self {
        StreamSettings {
            storage_class: config.storage_class.as_ref().map(ToString::to_string),
            retention_age_secs: config.retention_policy.map(retention_secs),
            timestamping_mode: config.timestamping.mode.map(mode_number),
            timestamping_uncapped: config.timestamping.uncapped,
            delete_on_empty_secs: config.delete_on_empty.min_age.map(|d| d.as_secs()),
        }
    }
}

impl From<&StreamConfig> for StreamSettings {
    fn from(config: &StreamConfig) -> Self {
        StreamSettings::from(&OptionalStreamConfig::from(config.clone()))
    }
}

impl From<&StreamSettings> for OptionalStreamConfig {
    fn from(kept: &StreamSettings) -> Self {
        OptionalStreamConfig {
            storage_class: kept.storage_class.as_deref().map(CompactString::from),
            retention_policy: kept.retention_age_secs.map(retention_of),
            timestamping: OptionalTimestampingConfig {
                mode: kept.timestamping_mode.map(mode_of),
                uncapped: kept.timestamping_uncapped,
            },
            delete_on_empty: OptionalDeleteOnEmptyConfig {
                min_age: kept.delete_on_empty_secs.map(Duration::from_secs),
            },
        }
    }
}

impl From<&StreamSettings> for StreamConfig {
    fn from(kept: &StreamSettings) -> Self {
        StreamConfig {
            storage_class: kept.storage_class.as_deref().map(CompactString::from),
            retention_policy: kept
                .retention_age_secs
                .map(retention_of)
                .unwrap_or_default(),
            timestamping: TimestampingConfig {
                mode: kept.timestamping_mode.map(mode_of).unwrap_or_default(),
                uncapped: kept.timestamping_uncapped.unwrap_or_default(),
            },
            delete_on_empty: DeleteOnEmptyConfig {
                min_age: Duration::from_secs(kept.delete_on_empty_secs.unwrap_or_default()),
            },
        }
    }
}

impl From<&BasinConfig> for BasinSettings {
    fn from(config: &BasinConfig) -> Self {
        BasinSettings {
            default_stream: StreamSettings::from(&config.default_stream_config),
            create_stream_on_append: config.create_stream_on_append,
            create_stream_on_read: config.create_stream_on_read,
            stream_cipher: cipher_number(config.stream_cipher),
        }
    }
}

impl TryFrom<&BasinSettings> for BasinConfig {
    type Error = UnknownCipher;

    fn try_from(kept: &BasinSettings) -> Result<Self, UnknownCipher> {
        Ok(BasinConfig {
            default_stream_config: OptionalStreamConfig::from(&kept.default_stream),
            stream_cipher: cipher_of(kept.stream_cipher)?,
            create_stream_on_append: kept.create_stream_on_append,
            create_stream_on_read: kept.create_stream_on_read,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use s2_common::encryption::EncryptionAlgorithm;

    use super::*;

    #[test]
    fn settings_of_a_basin_keep_its_cipher_and_an_unknown_one_is_refused() {
        for cipher in [
            None,
            Some(EncryptionAlgorithm::Aegis256),
            Some(EncryptionAlgorithm::Aes256Gcm),
        ] {
            let config = BasinConfig {
                stream_cipher: cipher,
                ..BasinConfig::default()
            };
            let kept = BasinSettings::from(&config);
            assert_eq!(BasinConfig::try_from(&kept), Ok(config));
        }
        let unknown = BasinSettings {
            stream_cipher: 3,
            ..BasinSettings::default()
        };
        let refused = BasinConfig::try_from(&unknown).unwrap_err();
        assert!(refused.to_string().contains("use a newer esker"));
    }

    #[test]
    fn settings_that_an_earlier_build_stored_have_no_cipher() {
        // `default_stream` without a field, and `create_stream_on_append`.
        let stored = [0x0a, 0x00, 0x10, 0x01];
        let kept = BasinSettings::decode(&stored[..]).unwrap();
        let config = BasinConfig::try_from(&kept).unwrap();
        assert_eq!(config.stream_cipher, None);
        assert!(config.create_stream_on_append);
        // Without a cipher, they are stored in the same form, so that earlier builds read them.
        assert_eq!(BasinSettings::from(&config).encode_to_vec(), stored);
    }

    #[test]
    fn stream_settings_keep_every_field() {
        let config = StreamConfig {
            storage_class: Some("express".into()),
            retention_policy: RetentionPolicy::Age(Duration::from_secs(60)),
            timestamping: TimestampingConfig {
                mode: TimestampingMode::Arrival,
                uncapped: true,
            },
            delete_on_empty: DeleteOnEmptyConfig {
                min_age: Duration::from_secs(9),
            },
        };
        assert_eq!(StreamConfig::from(&StreamSettings::from(&config)), config);
        let infinite = StreamConfig {
            retention_policy: RetentionPolicy::Infinite(),
            ..config
        };
        assert_eq!(
            StreamConfig::from(&StreamSettings::from(&infinite)),
            infinite
        );
    }
}
