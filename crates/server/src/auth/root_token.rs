//! The file with the root token, whose holder may do everything.
//!
//! The token is the file's only line. As `ssh` does with keys, a file that others can read or write is refused:
//! everybody on the machine would be root. The group may read it, as secrets that are mounted into a container
//! often have it; that is a warning.
//!
//! It is read at the start, and again while the server runs ([`root_token_reload`](super::root_token_reload)).
//! What is in memory after that is the hash of the token.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use esker_node::TokenHash;

use super::token;

/// Shortest root token, in characters: 128 bits, written in hexadecimal.
const MIN_ROOT_TOKEN: usize = 32;
/// Bytes of the file that are read at most.
const MAX_FILE: u64 = 4096;

/// Why there is no root token.
#[derive(Debug, thiserror::Error)]
pub enum RootTokenError {
    /// The file is missing.
    #[error(
        "root token file {} does not exist: name an existing one in `root-token-file`, or have \
         --create-root-token create it", .0.display()
    )]
    Missing(PathBuf),
    /// The file cannot be read or written now.
    #[error("{operation} root token file {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// Others may read or write the file.
    #[error(
        "root token file {} has mode {mode:03o}: {who}, and would be root; `chmod 600` it, and replace the \
         token if somebody may have read it", path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Who can do what.
        who: &'static str,
    },
    /// What is in the file is no token.
    #[error("root token file {} {problem}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl RootTokenError {
    fn io(operation: &'static str, path: &Path, source: std::io::Error) -> RootTokenError {
        RootTokenError::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// The root token, by its hash, and what an operator should know about the file.
#[derive(Debug)]
pub(crate) struct RootToken {
    pub(crate) hash: TokenHash,
    pub(crate) warning: Option<String>,
}

/// Reads the file.
///
/// # Errors
///
/// It is missing, cannot be read, is open to others, or has no token.
pub(crate) fn read(path: &Path) -> Result<RootToken, RootTokenError> {
    let unfit = |problem: &str| RootTokenError::Unfit {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    // A named pipe must not make the start wait: opening one without a writer would.
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => RootTokenError::Missing(path.to_owned()),
        _ => RootTokenError::io("opening", path, source),
    })?;
    let metadata = file
        .metadata()
        .map_err(|e| RootTokenError::io("examining", path, e))?;
    if !metadata.is_file() {
        return Err(unfit(
            "is no regular file: name one that has the token as its only line",
        ));
    }
    let mode = metadata.permissions().mode() & 0o777;
    let who = match () {
        () if mode & 0o006 != 0 => Some("every user of this machine can read or write it"),
        () if mode & 0o020 != 0 => Some("its group can write it"),
        () => None,
    };
    if let Some(who) = who {
        return Err(RootTokenError::Open {
            path: path.to_owned(),
            mode,
            who,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| RootTokenError::io("reading", path, e))?;
    let text = bytes.trim_ascii();
    // Messages do not repeat what is in the file.
    if text.is_empty() {
        return Err(unfit(
            "is empty: put a token of at least 32 characters in, or remove the file and start with \
             --create-root-token",
        ));
    }
    if text.iter().any(u8::is_ascii_whitespace) {
        return Err(unfit(
            "has more than one word: the token has to be its only line",
        ));
    }
    if text.len() < MIN_ROOT_TOKEN {
        return Err(unfit(&format!(
            "has a token of {} characters, which can be guessed: at least {MIN_ROOT_TOKEN} are required, such as \
             those of `openssl rand -hex 32`",
            text.len()
        )));
    }
    let text = std::str::from_utf8(text)
        .ok()
        .filter(|text| token::is_token(text.as_bytes()));
    let Some(text) = text else {
        return Err(unfit(&format!(
            "has something that no header can carry: a token has visible ASCII characters alone, at most {} of them",
            token::MAX_TOKEN_BYTES
        )));
    };
    let warning = (mode & 0o040 != 0).then(|| {
        format!(
            "root token file {} has mode {mode:03o}: its group can read it, and is root with it; `chmod 600` it if \
             that is not meant",
            path.display()
        )
    });
    Ok(RootToken {
        hash: token::hash(text),
        warning,
    })
}

/// Checks that the next start can read the file.
///
/// # Errors
///
/// Those of that start.
pub fn check(path: &Path) -> Result<(), RootTokenError> {
    read(path).map(|_| ())
}

/// Creates the file with a new token and mode 0600, if there is none. Returns whether there was none.
///
/// The file appears as a whole: a start that is interrupted leaves none, or a complete one.
///
/// # Errors
///
/// It cannot be written.
pub fn create(path: &Path) -> Result<bool, RootTokenError> {
    if path.exists() {
        return Ok(false);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        let token = token::generate();
        writeln!(file, "{}", token.expose())?;
        file.sync_all()
    };
    let written = write();
    // Unlike a rename, this replaces no file that somebody else has created meanwhile.
    let linked = written.and_then(|()| fs::hard_link(&new, path));
    // If it was not created, there is nothing to remove.
    let _ = fs::remove_file(&new);
    match linked {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.exists() => return Ok(false),
        Err(e) => return Err(RootTokenError::io("creating", path, e)),
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|e| RootTokenError::io("syncing the directory of", path, e))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Dir {
            Dir(tempfile::tempdir().unwrap())
        }

        fn file(&self, bytes: &[u8], mode: u32) -> PathBuf {
            let path = self.0.path().join("root-token");
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_created_file_is_read_again_and_not_replaced() {
        let dir = Dir::new();
        let path = dir.0.path().join("root-token");
        assert!(matches!(read(&path), Err(RootTokenError::Missing(_))));
        assert!(create(&path).unwrap());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let first = read(&path).unwrap();
        assert!(first.warning.is_none());
        assert!(!create(&path).unwrap());
        assert_eq!(read(&path).unwrap().hash, first.hash);
        // Nothing else is left in the directory.
        assert_eq!(fs::read_dir(dir.0.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_or_write_is_refused() {
        let dir = Dir::new();
        for mode in [0o604, 0o602, 0o620, 0o644, 0o666] {
            let path = dir.file(TOKEN.as_bytes(), mode);
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:03o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
        for (mode, warns) in [(0o600, false), (0o400, false), (0o440, true), (0o640, true)] {
            let path = dir.file(TOKEN.as_bytes(), mode);
            assert_eq!(read(&path).unwrap().warning.is_some(), warns, "{mode:o}");
        }
    }

    #[test]
    fn space_around_the_token_is_no_part_of_it() {
        let dir = Dir::new();
        let plain = read(&dir.file(TOKEN.as_bytes(), 0o600)).unwrap();
        let spaced = read(&dir.file(format!("  {TOKEN}\r\n\n").as_bytes(), 0o600)).unwrap();
        assert_eq!(plain.hash, spaced.hash);
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_repeated() {
        let dir = Dir::new();
        let long = "x".repeat(token::MAX_TOKEN_BYTES + 1);
        let huge = "x".repeat(1 << 20);
        for (bytes, says) in [
            (b"".as_slice(), "is empty"),
            (b" \n\t ", "is empty"),
            (b"short-secret", "12 characters"),
            (b"0123456789abcdef 0123456789abcdef", "more than one word"),
            (b"0123456789abcdef\n0123456789abcdef", "more than one word"),
            (b"0123456789abcdef\x000123456789abcdef", "visible ASCII"),
            (b"0123456789abcdef\xff0123456789abcdef", "visible ASCII"),
            (long.as_bytes(), "visible ASCII"),
            (huge.as_bytes(), "visible ASCII"),
        ] {
            let error = read(&dir.file(bytes, 0o600)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("0123456789abcdef"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = Dir::new();
        let error = read(dir.0.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        let missing = dir.0.path().join("missing/root-token");
        assert!(matches!(create(&missing), Err(RootTokenError::Io { .. })));
    }
}
