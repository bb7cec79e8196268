//! Secrets that a command takes from a file or from the environment: access tokens and encryption keys.
//!
//! A secret is never printed: a [`Secret`] has no `Display`, and its `Debug` form leaves it out. Messages name
//! the file or the variable.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::failure::Failure;

/// Most bytes of a file with a secret. A longer file is certainly another one.
const MAX_BYTES: u64 = 16 * 1024;
const TOO_LARGE: &str = "the file is larger than any such secret";
/// Mode bits with which the group or everybody reads or writes a file.
const OTHERS: u32 = 0o066;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Its text, to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a secret is, for messages and errors.
#[derive(Clone, Copy)]
pub struct Kind {
    /// `access token`.
    pub name: &'static str,
    /// The stable code of its errors.
    pub code: &'static str,
}

/// The secret in a file, without the white space around it. Warns if others can read the file.
///
/// # Errors
///
/// The code of the kind if the file cannot be read, is empty or is no text.
pub fn read(path: &Path, kind: Kind) -> Result<Secret, Failure> {
    let shown = path.display();
    let failed = |why: &dyn fmt::Display| {
        Failure::usage(kind.code, format!("the {} in {shown}: {why}", kind.name))
    };
    let (text, found) = contents(path).map_err(|e| failed(&e))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(&TOO_LARGE));
    }
    warn_of_readers(path, &found, &format!("an {}", kind.name));
    let text = String::from_utf8(text).map_err(|_| failed(&"the file is no text"))?;
    checked(&text, kind).map_err(|why| failed(&why))
}

/// The contents of a file with a secret that is not one word, such as a private key. Warns if others can read
/// the file.
///
/// # Errors
///
/// Why the file cannot be read.
pub fn read_bytes(path: &Path, what: &str) -> Result<Vec<u8>, String> {
    let (contents, found) = contents(path).map_err(|e| e.to_string())?;
    if contents.len() as u64 > MAX_BYTES {
        return Err(TOO_LARGE.to_owned());
    }
    warn_of_readers(path, &found, what);
    Ok(contents)
}

fn warn_of_readers(path: &Path, found: &Metadata, what: &str) {
    if found.is_file() && found.mode() & OTHERS != 0 {
        let shown = path.display();
        say!("warning: others than its owner can read {shown}, which holds {what}: `chmod 600` it");
    }
}

/// The secret in an environment variable; `None` if that is not set, or empty.
///
/// # Errors
///
/// The code of the kind if its value is no text of that kind.
pub fn of_variable(
    name: &str,
    value: Option<OsString>,
    kind: Kind,
) -> Result<Option<Secret>, Failure> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let failed = |why: &str| {
        let what = kind.name;
        Failure::usage(kind.code, format!("the {what} in {name}: {why}"))
    };
    let text = value
        .to_str()
        .ok_or_else(|| failed("the variable is no text"))?;
    let secret = checked(text, kind).map_err(|why| failed(&why))?;
    Ok(Some(secret))
}

fn contents(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    Ok((text, found))
}

/// A secret goes into a header, where only visible characters of ASCII can be.
fn checked(text: &str, kind: Kind) -> Result<Secret, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "an {} is one word of letters, digits and signs, and this is not",
            kind.name
        ));
    }
    Ok(Secret(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind {
        name: "access token",
        code: "token",
    };

    #[test]
    fn a_secret_is_one_word_and_errors_do_not_contain_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (content, expected) in [
            (&b"esk_abc\n"[..], Ok("esk_abc")),
            (b"  esk_abc\r\n", Ok("esk_abc")),
            (b"", Err("empty")),
            (b" \n", Err("empty")),
            (b"two words", Err("one word")),
            (b"esk_abc\nesk_def", Err("one word")),
            (b"esk_\xff", Err("no text")),
            (&[b'x'; 20 << 10], Err("larger")),
        ] {
            std::fs::write(&path, content).unwrap();
            match (read(&path, KIND), expected) {
                (Ok(secret), Ok(expected)) => assert_eq!(secret.expose(), expected),
                (Err(failure), Err(reason)) => {
                    assert_eq!((failure.code, failure.exit), ("token", 2));
                    assert!(failure.message.contains(reason), "{}", failure.message);
                    assert!(!failure.message.contains("esk_"), "{}", failure.message);
                }
                (read, expected) => panic!("{content:?}: {read:?}, not {expected:?}"),
            }
        }
        let missing = read(&dir.path().join("missing"), KIND).unwrap_err();
        assert!(missing.message.contains("missing"), "{}", missing.message);
    }

    #[test]
    fn an_empty_variable_is_unset_and_debug_output_has_no_secret() {
        assert_eq!(of_variable("X", None, KIND).unwrap(), None);
        assert_eq!(of_variable("X", Some("".into()), KIND).unwrap(), None);
        let secret = of_variable("X", Some("esk_abc".into()), KIND).unwrap();
        assert!(!format!("{secret:?}").contains("abc"));
        let failure = of_variable("X", Some("esk abc".into()), KIND).unwrap_err();
        assert!(failure.message.contains("in X"), "{}", failure.message);
        assert!(!failure.message.contains("abc"), "{}", failure.message);
    }
}
