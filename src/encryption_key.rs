//! The key with which records are encrypted: `--encryption-key-file`, or an environment variable.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s2_sdk::types::EncryptionKey;

use crate::failure::Failure;
use crate::secret_file::{self, Kind};

/// Name of the environment variable with a key.
const KEY_VARIABLE: &str = "ESKER_ENCRYPTION_KEY";
/// What a key is.
pub const KEY: Kind = Kind {
    name: "encryption key",
    code: "encryption_key",
};

/// The key of a basin whose records are encrypted.
#[derive(clap::Args, Debug, Default)]
pub struct KeyArgs {
    /// File with the key of encrypted records: 32 bytes in base64 [env: ESKER_ENCRYPTION_KEY, the key itself]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Encryption")]
    encryption_key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// The key, if one is given.
    ///
    /// # Errors
    ///
    /// `encryption_key` if the file cannot be read, or holds no key.
    pub fn key(&self) -> Result<Option<EncryptionKey>, Failure> {
        let (secret, place) = match &self.encryption_key_file {
            Some(path) => {
                let secret = secret_file::read(path, KEY)?;
                (Some(secret), path.display().to_string())
            }
            None => {
                let value = std::env::var_os(KEY_VARIABLE);
                let secret = secret_file::of_variable(KEY_VARIABLE, value, KEY)?;
                (secret, KEY_VARIABLE.to_owned())
            }
        };
        let Some(secret) = secret else {
            return Ok(None);
        };
        let bytes = BASE64.decode(secret.expose()).ok();
        let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let key = key.ok_or_else(|| {
            Failure::usage(
                KEY.code,
                format!("the encryption key in {place} is no key: that is 32 bytes in base64"),
            )
            .advise("make one with `openssl rand -base64 32`")
        })?;
        Ok(Some(EncryptionKey::new(key)))
    }
}
