//! The options of a node that belongs to a cluster, from the configuration and the files that it names.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use esker_node::{ClusterOptions, PeerTls};

use crate::config::{ClusterConfig, Config, HumanDuration};

/// Shortest secret, in characters: 128 bits, written in hexadecimal.
const MIN_SECRET: usize = 32;
/// Most secrets at a time: the one that nodes present, and the one that it replaces or that replaces it.
const MAX_SECRETS: usize = 2;
/// Most bytes of a file that is read: a chain of certificates has some 10 KiB.
const MAX_FILE: u64 = 1 << 20;

/// A file of `[cluster]` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// The file cannot be read now, or is not there.
    #[error("reading {path} (`cluster.{key}`): {source}", path = .path.display())]
    Unreadable {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// What is in the file cannot be used.
    #[error("{path} (`cluster.{key}`) {problem}", path = .path.display())]
    Unfit {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// The options; `None` if the node is to be a cluster of its own. Blocking.
pub(super) fn cluster_options(config: &Config) -> Result<Option<ClusterOptions>, ClusterFileError> {
    let cluster = &config.cluster;
    if cluster.peer_listen.is_none() {
        return Ok(None);
    }
    let mut secrets = match &cluster.secret_file {
        Some(path) => read_secrets(path)?,
        None => Vec::new(),
    }
    .into_iter();
    let tls = read_certificates(cluster)?;
    let join = cluster.join.as_deref().unwrap_or_default().split(',');
    Ok(Some(ClusterOptions {
        name: cluster.name.clone(),
        listen: cluster.peer_listen,
        peer_address: cluster.peer_advertise.clone(),
        client_address: match &cluster.advertise {
            Some(address) => address.clone(),
            None => config.listen.to_string(),
        },
        zone: cluster.zone.clone().unwrap_or_default(),
        join: join
            .map(str::trim)
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect(),
        secret: secrets.next(),
        other_secrets: secrets.collect(),
        tls,
        check_interval: cluster.check_interval.map(HumanDuration::as_duration),
        check_rate: cluster.check_rate.as_u64(),
        transfer_rate: cluster.transfer_rate.as_u64(),
    }))
}

/// The certificates of nodes, if the configuration has them. Blocking.
pub(super) fn read_certificates(
    cluster: &ClusterConfig,
) -> Result<Option<PeerTls>, ClusterFileError> {
    let files = (&cluster.certificate, &cluster.private_key, &cluster.ca);
    let (Some(certificate), Some(key), Some(ca)) = files else {
        return Ok(None);
    };
    Ok(Some(PeerTls {
        ca: read_file("ca", ca)?,
        certificate: read_file("certificate", certificate)?,
        key: read_file("private-key", key)?,
        server_name: None,
    }))
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, ClusterFileError> {
    let unreadable = |source| ClusterFileError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(ClusterFileError::Unfit {
            key,
            path: path.to_owned(),
            problem: format!("is larger than {MAX_FILE} bytes: name the right file"),
        }),
        false => Ok(bytes),
    }
}

/// The secrets of a file: the one that this node presents, and a second one that it accepts, if there is one. Blocking.
pub(super) fn read_secrets(path: &Path) -> Result<Vec<String>, ClusterFileError> {
    const KEY: &str = "secret-file";
    let unfit = |problem: String| ClusterFileError::Unfit {
        key: KEY,
        path: path.to_owned(),
        problem,
    };
    let bytes = read_file(KEY, path)?;
    let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
    let mode = mode.map_err(|source| ClusterFileError::Unreadable {
        key: KEY,
        path: path.to_owned(),
        source,
    })?;
    if mode & 0o026 != 0 || mode & 0o004 != 0 {
        return Err(unfit(format!(
            "has mode {mode:03o}: other users of the machine could join the cluster; `chmod 600` it"
        )));
    }
    let text = std::str::from_utf8(bytes.trim_ascii()).unwrap_or_default();
    let secrets: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    let is_secret = |text: &String| {
        text.len() >= MIN_SECRET && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if secrets.is_empty() || !secrets.iter().all(is_secret) {
        return Err(unfit(format!(
            "has no secret: at least {MIN_SECRET} visible ASCII characters are required as its only line, such as \
             those of `openssl rand -hex 32`; while one replaces another, it has two lines"
        )));
    }
    if secrets.len() > MAX_SECRETS {
        return Err(unfit(format!(
            "has {} lines: there is one secret, and a second one while it is replaced",
            secrets.len()
        )));
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(secret: Option<&Path>) -> Config {
        let mut config = Config::default();
        config.cluster.peer_listen = Some("127.0.0.1:0".parse().unwrap());
        config.cluster.join = Some(" a:1, b:2 ,,".to_owned());
        config.cluster.secret_file = secret.map(Path::to_owned);
        config
    }

    #[test]
    fn without_an_address_for_others_there_is_no_cluster() {
        assert!(cluster_options(&Config::default()).unwrap().is_none());
        let options = cluster_options(&config(None)).unwrap().unwrap();
        assert_eq!(options.join, ["a:1", "b:2"]);
        assert_eq!(options.client_address, Config::default().listen.to_string());
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_can_be_guessed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            cluster_options(&config(Some(&path))).map(|options| options.unwrap().secret)
        };
        let secret = "0123456789abcdef0123456789abcdef";
        assert_eq!(
            write(&format!("{secret}\n"), 0o600).unwrap().unwrap(),
            secret
        );
        let other = "fedcba9876543210fedcba9876543210";
        write(&format!("{secret}\r\n{other}\n"), 0o600).unwrap();
        let both = cluster_options(&config(Some(&path))).unwrap().unwrap();
        assert_eq!(both.secret.as_deref(), Some(secret));
        assert_eq!(both.other_secrets, [other]);
        let three = format!("{secret}\n{other}\n{secret}");
        let short = format!("{secret}\nshort");
        for (text, mode, why) in [
            (&*three, 0o600, "has 3 lines"),
            (&*short, 0o600, "at least 32"),
            (secret, 0o644, "mode 644"),
            (secret, 0o620, "mode 620"),
            ("short", 0o600, "at least 32"),
            (
                "two words of a secret that is long enough",
                0o600,
                "visible",
            ),
        ] {
            let refused = write(text, mode).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert!(!refused.contains("0123"), "{refused}");
        }
        let missing = cluster_options(&config(Some(&dir.path().join("none")))).unwrap_err();
        assert!(
            missing.to_string().contains("cluster.secret-file"),
            "{missing}"
        );
    }
}
