//! Commands of tests, and the answers to them.

use bytes::Bytes;
use s2_common::encryption::{EncryptionAlgorithm, EncryptionSpec};
use s2_common::record::{CommandRecord, EnvelopeRecord, Record, SeqNum};
use s2_common::stream::{AppendRecord, AppendRecordParts};

use crate::command::{
    Append, AppendRefusal, Appended, DeleteIfEmpty, DeleteStream, DropBasin, Expire, Kind, Mode,
    Outcome, ProvisionRefusal, ProvisionStream, Provisioned, SetStreamSettings, SettingsSet,
};
use crate::encryption::{associated_data, cipher_of, encrypt};
use crate::ids::{BasinId, PartitionId, StreamId};
use crate::settings::StreamSettings;

/// The basin of tests that need only one.
pub const BASIN: BasinId = BasinId(1);
/// When most streams are created, in milliseconds since the epoch.
pub const CREATED_MS: u64 = 1_000;

pub const PARTITION: PartitionId = PartitionId(1);

/// The key of all tests, for the cipher of this number.
pub fn spec_of(cipher: u32) -> EncryptionSpec {
    match cipher_of(cipher).unwrap() {
        None => EncryptionSpec::Plain,
        Some(EncryptionAlgorithm::Aegis256) => EncryptionSpec::aegis256([7; 32]),
        Some(EncryptionAlgorithm::Aes256Gcm) => EncryptionSpec::aes256_gcm([7; 32]),
    }
}

/// A record to be appended.
pub type Rec = (Option<u64>, Record);

pub fn rec(body: impl Into<Bytes>) -> Rec {
    let record = EnvelopeRecord::try_from_parts(Vec::new(), body.into()).unwrap();
    (None, Record::Envelope(record))
}

/// A record with a timestamp of the client.
pub fn timed(timestamp: u64, body: &'static str) -> Rec {
    (Some(timestamp), rec(body).1)
}

pub fn fence(token: &str) -> Rec {
    let token = token.parse().unwrap();
    (None, Record::Command(CommandRecord::Fence(token)))
}

pub fn trim(point: SeqNum) -> Rec {
    (None, Record::Command(CommandRecord::Trim(point)))
}

/// An append without conditions.
pub fn append(stream: StreamId, at_ms: u64, records: Vec<Rec>) -> Append {
    encrypted(0, stream, at_ms, records)
}

/// An append without conditions to a stream with this cipher.
pub fn encrypted(cipher: u32, stream: StreamId, at_ms: u64, records: Vec<Rec>) -> Append {
    let records: Vec<AppendRecord> = records
        .into_iter()
        .map(|(timestamp, record)| {
            let record = record.into();
            AppendRecord::try_from(AppendRecordParts { timestamp, record }).unwrap()
        })
        .collect();
    let data = associated_data(PARTITION, stream);
    let records = encrypt(records.try_into().unwrap(), &spec_of(cipher).into(), &data);
    Append::new(stream, records, at_ms)
}

/// An append of records with these bodies.
pub fn bodies<const N: usize>(stream: StreamId, at_ms: u64, bodies: [&'static str; N]) -> Append {
    append(stream, at_ms, bodies.into_iter().map(rec).collect())
}

pub fn create(basin: BasinId, name: &str, settings: StreamSettings) -> Kind {
    Kind::ProvisionStream(ProvisionStream {
        basin: basin.0,
        name: name.to_owned(),
        settings,
        mode: Mode::CreateOnly.into(),
        request_hash: Vec::new(),
        at_ms: CREATED_MS,
        cipher: 0,
    })
}

/// Creates a stream with this cipher.
pub fn create_encrypted(basin: BasinId, name: &str, cipher: u32) -> Kind {
    match create(basin, name, StreamSettings::default()) {
        Kind::ProvisionStream(provision) => Kind::ProvisionStream(ProvisionStream {
            cipher,
            ..provision
        }),
        other => other,
    }
}

pub fn ensure(basin: BasinId, name: &str, settings: StreamSettings, at_ms: u64) -> Kind {
    Kind::ProvisionStream(ProvisionStream {
        basin: basin.0,
        name: name.to_owned(),
        settings,
        mode: Mode::Ensure.into(),
        request_hash: Vec::new(),
        at_ms,
        cipher: 0,
    })
}

pub fn set_settings(stream: StreamId, if_version: u64, settings: StreamSettings) -> Kind {
    Kind::SetStreamSettings(SetStreamSettings {
        stream: stream.0,
        if_version,
        settings,
        at_ms: CREATED_MS,
    })
}

pub fn delete(basin: BasinId, name: &str) -> Kind {
    Kind::DeleteStream(DeleteStream {
        basin: basin.0,
        name: name.to_owned(),
    })
}

pub fn expire(stream: StreamId, up_to: SeqNum, at_ms: u64) -> Kind {
    Kind::Expire(Expire {
        stream: stream.0,
        up_to,
        at_ms,
        if_settings_version: None,
    })
}

pub fn delete_if_empty(stream: StreamId, since_ms: u64) -> Kind {
    Kind::DeleteIfEmpty(DeleteIfEmpty {
        stream: stream.0,
        since_ms,
        if_settings_version: None,
    })
}

pub fn drop_basin(basin: BasinId) -> Kind {
    Kind::DropBasin(DropBasin { basin: basin.0 })
}

pub fn bytes_of(command: Kind) -> Bytes {
    command.into_bytes().into()
}

/// Settings that keep records for this long.
pub fn keep_for_secs(age: u64) -> StreamSettings {
    StreamSettings {
        retention_age_secs: Some(age),
        ..StreamSettings::default()
    }
}

pub fn appended(outcome: Outcome) -> Result<Appended, AppendRefusal> {
    match outcome {
        Outcome::Appended(result) => result,
        other => panic!("not the outcome of an append: {other:?}"),
    }
}

pub fn provisioned(outcome: Outcome) -> Result<Provisioned<StreamId>, ProvisionRefusal> {
    match outcome {
        Outcome::StreamProvisioned(result) => result,
        other => panic!("not the outcome of provisioning a stream: {other:?}"),
    }
}

pub fn settings_set(outcome: &Outcome) -> SettingsSet {
    match outcome {
        Outcome::SettingsSet(result) => *result,
        other => panic!("not the outcome of setting settings: {other:?}"),
    }
}
