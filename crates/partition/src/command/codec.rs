//! How a command is encoded: one version byte and a protobuf [`Command`].
//!
//! A command that has to do with a cipher has version 2, so that earlier builds, which would ignore the
//! cipher, refuse it by name. Later versions are of fields that earlier builds would ignore, too.

use bytes::{Buf, Bytes};
use prost::Message as _;

use super::{Command, DeleteIfEmpty, Expire, Kind, NoteDigests};

const VERSION: u8 = 1;
/// The version of commands that set or use a cipher.
const VERSION_ENCRYPTED: u8 = 2;
/// The version of appends that are refused in a later term
/// ([`Append::session_term`](super::Append::session_term)), and of commands about the history itself.
const VERSION_CLUSTER: u8 = 3;
/// The version of commands that name the version of the settings by which they are due
/// ([`Expire::if_settings_version`]).
const VERSION_SETTINGS: u8 = 4;
/// The version of comparisons of digests that count answers by their origins ([`NoteDigests::has_origins`]), and of
/// what an operator says about such a comparison.
const VERSION_ORIGINS: u8 = 5;
/// The version of changes of a node's state that have the time ([`SetNodeState::at_ms`](super::SetNodeState::at_ms)).
const VERSION_NODE_TIMES: u8 = 6;
/// The version of registrations for which another node may be forgotten
/// ([`RegisterNode::may_forget`](super::RegisterNode::may_forget)).
const VERSION_FORGETTING: u8 = 7;
/// The newest version that this build reads.
const NEWEST_VERSION: u8 = VERSION_FORGETTING;

impl Kind {
    /// Encodes the command for the log.
    pub fn into_bytes(self) -> Vec<u8> {
        let version = self.version();
        let command = Command { kind: Some(self) };
        let mut bytes = Vec::with_capacity(1 + command.encoded_len());
        bytes.push(version);
        command.encode_raw(&mut bytes);
        bytes
    }

    /// The same, for a command that the caller still needs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + self.encoded_len());
        bytes.push(self.version());
        self.encode(&mut bytes);
        bytes
    }

    fn version(&self) -> u8 {
        let cipher = match self {
            Kind::TrustReplica(_)
            | Kind::NoteDigests(NoteDigests {
                has_origins: true, ..
            }) => return VERSION_ORIGINS,
            Kind::NoteArchived(_)
            | Kind::BeginLineage(_)
            | Kind::AskDigest(_)
            | Kind::NoteDigests(_) => return VERSION_CLUSTER,
            Kind::Expire(Expire {
                if_settings_version: Some(_),
                ..
            })
            | Kind::DeleteIfEmpty(DeleteIfEmpty {
                if_settings_version: Some(_),
                ..
            }) => return VERSION_SETTINGS,
            Kind::SetNodeState(set) if set.at_ms != 0 => return VERSION_NODE_TIMES,
            Kind::RegisterNode(register) if register.may_forget => return VERSION_FORGETTING,
            Kind::Append(append) if append.session_term != 0 => return VERSION_CLUSTER,
            Kind::Append(append) => append.cipher,
            Kind::ProvisionStream(provision) => provision.cipher,
            Kind::ProvisionBasin(provision) => provision.settings.stream_cipher,
            Kind::SetBasinSettings(set) => set.settings.stream_cipher,
            _ => 0,
        };
        match cipher {
            0 => VERSION,
            _ => VERSION_ENCRYPTED,
        }
    }

    /// Decodes what [`Kind::into_bytes`] encoded. Its `Bytes` share the memory of `bytes`; they are not
    /// copied.
    ///
    /// # Errors
    ///
    /// The bytes are empty or malformed, or another version wrote them, or this version does not know the
    /// kind.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Kind, String> {
        if !bytes.has_remaining() {
            return Err("an empty command".to_owned());
        }
        let version = bytes.get_u8();
        if !(VERSION..=NEWEST_VERSION).contains(&version) {
            return Err(format!(
                "a command of version {version}, this version knows up to {NEWEST_VERSION}: use a newer esker"
            ));
        }
        Command::decode(bytes)
            .map_err(|e| e.to_string())?
            .kind
            .ok_or_else(|| "a command of an unknown kind: use a newer esker".to_owned())
    }
}
