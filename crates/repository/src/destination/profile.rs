//! Profiles as the AWS tools store them: in `~/.aws/credentials` and `~/.aws/config`, or in the files that
//! `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` name.
//!
//! Static keys, `region` and `endpoint_url` are read. A profile whose keys have to be requested first (SSO,
//! an assumed role, a credential process) is distinguished from a profile without keys, so that the error
//! names the unsupported setting.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use configparser::ini::Ini;

use super::{DestinationError, Environment, hidden};

/// Maximum size of a profile file, in bytes.
const LARGEST: u64 = 1024 * 1024;

/// Static keys.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("id", &hidden(&Some(&self.id)))
            .field("secret", &hidden(&Some(&self.secret)))
            .field("token", &hidden(&self.token))
            .finish()
    }
}

impl Keys {
    /// The keys of one place. It must have both an id and a secret, or neither.
    pub(super) fn of(
        place: &str,
        id: Option<String>,
        secret: Option<String>,
        token: Option<String>,
    ) -> Result<Option<Keys>, DestinationError> {
        let (has, lacks) = match (id, secret) {
            (Some(id), Some(secret)) => return Ok(Some(Keys { id, secret, token })),
            (None, None) => return Ok(None),
            (Some(_), None) => ("access key id", "secret access key"),
            (None, Some(_)) => ("secret access key", "access key id"),
        };
        Err(DestinationError::Settings(format!(
            "{place} has an AWS {has} but no {lacks}: set both or neither"
        )))
    }
}

/// The settings of a profile.
#[derive(Debug, Default)]
pub(super) struct Profile {
    pub(super) name: String,
    pub(super) region: Option<String>,
    pub(super) endpoint_url: Option<String>,
    keys: Option<Keys>,
    /// The setting that requests keys in a way that is not supported, if there is one.
    needs: Option<&'static str>,
}

impl Profile {
    /// Reads a profile. A profile that `name` names must exist. Without a name, `default` is read, and may
    /// be missing.
    pub(super) fn read(
        name: Option<&str>,
        environment: &Environment,
    ) -> Result<Profile, DestinationError> {
        let wanted = name.unwrap_or("default");
        let credentials = file(environment, "AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = file(environment, "AWS_CONFIG_FILE", "config");
        // Keys in the credentials file have precedence over those in the config file.
        let prefixed = format!("profile {wanted}");
        let places = [
            (&credentials, vec![wanted]),
            (
                &config,
                // In the config file, only the default profile may omit the prefix.
                if wanted == "default" {
                    vec![prefixed.as_str(), wanted]
                } else {
                    vec![prefixed.as_str()]
                },
            ),
        ];
        let mut sections = Vec::new();
        for (path, names) in places {
            if let Some(path) = path
                && let Some(ini) = load(path)?
            {
                let section = names
                    .into_iter()
                    .find(|name| ini.get_map_ref().contains_key(*name));
                sections.extend(
                    section.map(|name| (path.clone(), Section(ini.clone(), name.to_owned()))),
                );
            }
        }
        if sections.is_empty() && name.is_some() {
            let files: Vec<_> = [credentials, config].into_iter().flatten().collect();
            return Err(DestinationError::Settings(not_found(wanted, &files)));
        }
        let mut profile = Profile {
            name: wanted.to_owned(),
            ..Profile::default()
        };
        for (path, section) in &sections {
            profile.add(path, section)?;
        }
        Ok(profile)
    }

    fn add(&mut self, path: &Path, section: &Section) -> Result<(), DestinationError> {
        if self.keys.is_none() {
            self.keys = Keys::of(
                &format!("profile {:?} in {}", self.name, path.display()),
                section.get("aws_access_key_id"),
                section.get("aws_secret_access_key"),
                section.get("aws_session_token"),
            )?;
        }
        self.region = self.region.take().or_else(|| section.get("region"));
        self.endpoint_url = self
            .endpoint_url
            .take()
            .or_else(|| section.get("endpoint_url"));
        self.needs = self.needs.or_else(|| {
            // Keys in a profile with `role_arn` only request the role's keys; they are not the keys to use.
            [
                "role_arn",
                "sso_session",
                "sso_start_url",
                "sso_account_id",
                "credential_process",
                "login_session",
            ]
            .into_iter()
            .find(|setting| section.get(setting).is_some())
        });
        Ok(())
    }

    /// Its keys, if it has any.
    ///
    /// # Errors
    ///
    /// The profile gets its keys in a way that is not supported.
    pub(super) fn keys(&self) -> Result<Option<Keys>, DestinationError> {
        match (self.needs, &self.keys) {
            (Some(setting), None) | (Some(setting @ "role_arn"), Some(_)) => {
                let name = &self.name;
                Err(DestinationError::Settings(format!(
                    "profile {name:?} gets its keys by {setting}, which is not supported: use a \
                     profile with static keys, or put temporary keys into the environment with \
                     `eval \"$(aws configure export-credentials --profile {name} --format env)\"`"
                )))
            }
            (_, keys) => Ok(keys.clone()),
        }
    }
}

/// A section of a file, by its name.
struct Section(Ini, String);

impl Section {
    fn get(&self, key: &str) -> Option<String> {
        let value = self.0.get_map_ref().get(&self.1)?.get(key)?.clone()?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    }
}

fn not_found(name: &str, files: &[PathBuf]) -> String {
    if files.is_empty() {
        return format!(
            "the AWS profile {name:?} is asked for, but there is no home directory to find it in: set AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE"
        );
    }
    let files: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    format!("there is no AWS profile {name:?} in {}", files.join(" or "))
}

/// The path of a file: from a variable, or below the home directory.
fn file(environment: &Environment, variable: &str, name: &str) -> Option<PathBuf> {
    let home = environment.home.as_ref();
    match environment.get(variable) {
        Some(path) => Some(match (path.strip_prefix("~/"), home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        }),
        None => home.map(|home| home.join(".aws").join(name)),
    }
}

/// Parses a file; none if it does not exist. Errors contain line numbers and no content.
fn load(path: &Path) -> Result<Option<Ini>, DestinationError> {
    let failed = |source| DestinationError::Io {
        path: path.to_owned(),
        source,
    };
    let text = match std::fs::metadata(path) {
        Ok(meta) if meta.len() > LARGEST => {
            return Err(failed(io::Error::other(
                "it is too large to be a file of profiles",
            )));
        }
        Ok(_) => std::fs::read_to_string(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut ini = Ini::new_cs();
    let mut rules = ini.defaults();
    rules.delimiters = vec!['='];
    rules.comment_symbols = vec!['#', ';'];
    // A `#` within a line may be part of a value.
    rules.inline_comment_symbols = Some(Vec::new());
    // Settings of services are indented below their names; they are not the profile's.
    rules.multiline = true;
    // Lines before the first section belong to no section.
    rules.default_section = "\n".to_owned();
    ini.load_defaults(rules);
    ini.read(text)
        .map_err(|why| failed(io::Error::new(io::ErrorKind::InvalidData, why)))?;
    Ok(Some(ini))
}
