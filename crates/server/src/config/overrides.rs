//! The command-line flags of the configuration.

use std::fmt;
use std::path::PathBuf;

use super::error::ConfigError;
use super::key::{Key, keys};
use super::kind::Raw;
use super::setting::Setting;
use super::source::Source;

/// Flags that name the configuration file and set keys. A flag wins over the environment and the
/// file. Values are kept as they were written, so that a bad one is explained in the same words
/// whichever way it came.
#[derive(Clone, Default, clap::Args)]
pub struct Overrides {
    /// Configuration file (TOML). Without it, ESKER_CONFIG names the file; without either, no file
    /// is read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Directory of everything the server keeps
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address to listen on, such as 127.0.0.1:7070
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// File with the root token; with it, every request needs a token
    #[arg(long, value_name = "FILE")]
    pub root_token_file: Option<PathBuf>,

    /// Allow an address that other machines can reach, although requests need no token
    #[arg(long)]
    pub insecure_no_auth: bool,

    /// Number of stream partitions, fixed when the data directory is created
    #[arg(long, value_name = "COUNT")]
    pub partitions: Option<String>,

    /// The server's certificate with its chain (PEM): the listeners then speak TLS
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,

    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_private_key: Option<PathBuf>,

    /// Authorities (PEM), one of which must have issued the certificate of each client
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Make a certificate for trying out TLS, in the data directory
    #[arg(long)]
    pub tls_self_signed: bool,

    /// Set any key, such as log.segment-size=64MiB. May be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Without the values of secrets.
impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set: Vec<_> = self.set.iter().map(|set| shown(set)).collect();
        f.debug_struct("Overrides")
            .field("config", &self.config)
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .field("root_token_file", &self.root_token_file)
            .field("insecure_no_auth", &self.insecure_no_auth)
            .field("partitions", &self.partitions)
            .field("tls_certificate", &self.tls_certificate)
            .field("tls_private_key", &self.tls_private_key)
            .field("tls_client_ca", &self.tls_client_ca)
            .field("tls_self_signed", &self.tls_self_signed)
            .field("set", &set)
            .finish()
    }
}

impl Overrides {
    /// The keys that the flags set, and all problems with the flags.
    pub(super) fn read(&self) -> (Vec<Setting>, Vec<ConfigError>) {
        let mut found: Vec<Setting> = Vec::new();
        let mut problems = Vec::new();

        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.to_string_lossy().into_owned())
        };
        let switch = |is_set: bool| is_set.then(|| "true".to_string());
        let own = [
            ("data-dir", path(&self.data_dir)),
            ("listen", self.listen.clone()),
            ("root-token-file", path(&self.root_token_file)),
            ("insecure-no-auth", switch(self.insecure_no_auth)),
            ("partitions", self.partitions.clone()),
            ("tls.certificate", path(&self.tls_certificate)),
            ("tls.private-key", path(&self.tls_private_key)),
            ("tls.client-ca", path(&self.tls_client_ca)),
            ("tls.self-signed", switch(self.tls_self_signed)),
        ];
        for (path, value) in own {
            if let (Some(value), Some(key)) = (value, keys().by_path(path)) {
                let from = Source::Flag {
                    name: format!("--{}", path.replace('.', "-")),
                };
                found.push(Setting {
                    key,
                    raw: Raw::Bare(value),
                    from,
                });
            }
        }

        for set in &self.set {
            match read_set(set) {
                Ok(setting) => match find(&found, setting.key) {
                    Some(earlier) => problems.push(ConfigError::BadFlag {
                        flag: format!("--set {}", shown(set)),
                        problem: format!("{earlier} sets the same key; give one of them"),
                    }),
                    None => found.push(setting),
                },
                Err(problem) => problems.push(problem),
            }
        }
        (found, problems)
    }
}

fn find<'a>(found: &'a [Setting], key: &Key) -> Option<&'a Source> {
    found
        .iter()
        .find(|setting| setting.key.path == key.path)
        .map(|setting| &setting.from)
}

/// The argument of `--set`, as a message may repeat it: no secrets, even if there is no `=`.
fn shown(set: &str) -> String {
    let (path, value) = match set.split_once('=') {
        Some((path, value)) => (path, Some(value)),
        None => (set, None),
    };
    let key = keys().by_path(path.trim());
    match (key, value) {
        (Some(key), Some(value)) => format!("{path}={}", key.kind.shown_text(value)),
        (None, None) => match path.find([':', ' ', '\t']) {
            Some(end) => format!("{}…", &path[..end]),
            None => path.into(),
        },
        // The value of an unknown key may have been meant for a secret.
        (None, Some(_)) => format!("{path}=…"),
        (Some(_), None) => path.into(),
    }
}

fn read_set(set: &str) -> Result<Setting, ConfigError> {
    let Some((path, value)) = set.split_once('=') else {
        return Err(ConfigError::BadFlag {
            flag: format!("--set {}", shown(set)),
            problem: "there is no `=`; write a key and its value, for example \
                      `--set log.segment-size=64MiB`"
                .into(),
        });
    };
    let path = path.trim();
    let from = Source::Flag {
        name: format!("--set {path}"),
    };
    match keys().by_path(path) {
        Some(key) => Ok(Setting {
            key,
            raw: Raw::Bare(value.to_string()),
            from,
        }),
        None => Err(match path.rsplit_once('.') {
            Some((section, name)) => ConfigError::unknown_key(Some(section), name, from),
            None => ConfigError::unknown_key(None, path, from),
        }),
    }
}
