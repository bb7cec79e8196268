//! `--json`: standard output is JSON, including a failure.
//!
//! A command that prints one document adds a failure as `error` to it, beside the partial result; one that
//! prints a document per line adds it as the last line.

use std::borrow::Cow;
use std::ffi::OsString;

use clap::error::ErrorKind;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::print;

/// A failure, for programs.
#[derive(Serialize)]
struct Problem<'a> {
    code: &'a str,
    message: &'a str,
    what_to_do: &'a str,
}

/// A document, with a failure if there is one.
#[derive(Serialize)]
struct Answer<'a, T: Serialize> {
    #[serde(flatten)]
    document: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem<'a>>,
}

/// Whether a command line asks for JSON. The command line may be invalid. `--format` of `stream append` does
/// not count: it is the format of its input.
pub fn is_wanted(arguments: &[OsString]) -> bool {
    let options = || arguments.iter().take_while(|argument| *argument != "--");
    let of_input = ["stream", "append"]
        .iter()
        .all(|word| options().any(|option| option == word));
    let mut follows_format = false;
    options().any(|option| {
        let is_format = std::mem::replace(&mut follows_format, option == "--format");
        let is_json = option == "--format=json" || (is_format && option == "json");
        option == "--json" || (is_json && !of_input)
    })
}

/// JSON with control characters escaped as JSON does, except for line feeds: between tokens, JSON has no
/// control characters but those and tabs.
pub fn escaped(json: &str) -> Cow<'_, str> {
    let is_bad = |c: char| c.is_control() && c != '\n';
    if !json.contains(is_bad) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_bad(c) {
            // No control character is beyond U+009F.
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
    }
    Cow::Owned(text)
}

/// Escapes a document that arrives in pieces, as [`escaped`] does.
#[derive(Default)]
pub struct EscapedPieces {
    /// Whether the last piece ended with the first byte of a character whose second byte is in the next one.
    begun: bool,
}

impl EscapedPieces {
    /// The next piece, escaped.
    pub fn next(&mut self, piece: &[u8]) -> Vec<u8> {
        // The first byte of U+0080 to U+009F in UTF-8.
        const BEGIN: u8 = 0xc2;
        let mut out = Vec::with_capacity(piece.len() + 1);
        for &byte in piece {
            let begun = std::mem::replace(&mut self.begun, byte == BEGIN);
            match byte {
                BEGIN => {}
                0x80..=0x9f if begun => out.extend(format!("\\u{byte:04x}").bytes()),
                0x7f => out.extend(b"\\u007f"),
                _ if begun => out.extend([BEGIN, byte]),
                _ => out.push(byte),
            }
        }
        out
    }
}

/// A document on one line, with its control characters escaped: also those that JSON need not escape, because
/// they would control a terminal.
pub fn line(document: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(document)?;
    Ok(match escaped(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(escaped) => escaped,
    })
}

/// Prints a document over several lines, with the failure in it if there is one, and returns the result.
pub fn print_with(document: &impl Serialize, result: Result<(), Failure>) -> Result<(), Failure> {
    answer(document, result, |answer| {
        serde_json::to_string_pretty(answer)
    })
}

/// The same, on one line.
pub fn print_line_with(
    document: &impl Serialize,
    result: Result<(), Failure>,
) -> Result<(), Failure> {
    answer(document, result, |answer| serde_json::to_string(answer))
}

fn answer<T: Serialize>(
    document: &T,
    result: Result<(), Failure>,
    text: impl FnOnce(&Answer<'_, T>) -> serde_json::Result<String>,
) -> Result<(), Failure> {
    let what_to_do = result.as_ref().err().map(Failure::what_to_do);
    let error = match (&result, &what_to_do) {
        (Err(failure), Some(what_to_do)) => Some(Problem {
            code: failure.code,
            message: &failure.message,
            what_to_do,
        }),
        _ => None,
    };
    let text = text(&Answer { document, error })
        .map_err(|e| Failure::wrong("io", format!("writing the output: {e}")))?;
    print(escaped(&text))?;
    result.map_err(|failure| Failure {
        is_printed: true,
        ..failure
    })
}

/// Prints a failure as a separate document, unless a printed document already contains it.
pub fn print_failure(failure: Failure) {
    #[derive(Serialize)]
    struct Nothing {}
    if !failure.is_printed {
        // The exit code still reports the failure.
        let _ = print_line_with(&Nothing {}, Err(failure));
    }
}

/// The failure for an invalid command line.
pub fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let message = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no subcommand is named",
        // The usage follows after an empty line.
        _ => text.split("\n\n").next().unwrap_or_default(),
    };
    let message = message.strip_prefix("error: ").unwrap_or(message);
    Failure::usage("usage", message.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_of_a_document_reaches_a_terminal() {
        let text: String = (0..0xa1).filter_map(char::from_u32).collect();
        let printed = line(&[&text]).unwrap();
        assert!(!printed.contains(char::is_control), "{printed:?}");
        assert!(
            printed.contains("\\u0080") && printed.contains("\\u009b"),
            "{printed}"
        );
        // It is the same document.
        let same: Vec<String> = serde_json::from_str(&printed).unwrap();
        assert_eq!(same, [text]);

        // The same holds for a document in pieces, as it is printed over several lines.
        let document = "{\n  \"é\u{9b}\u{7f}\": 1\n}\n";
        let mut pieces = EscapedPieces::default();
        let mut shown = Vec::new();
        for byte in document.as_bytes() {
            shown.extend(pieces.next(&[*byte]));
        }
        let shown = String::from_utf8(shown).unwrap();
        assert_eq!(shown, "{\n  \"é\\u009b\\u007f\": 1\n}\n");
    }

    #[test]
    fn json_is_wanted_where_an_option_says_it() {
        for (arguments, wanted) in [
            (&["esker", "status", "--json"][..], true),
            (&["esker", "stream", "read", "--format", "json"], true),
            (&["esker", "stream", "read", "--format=json"], true),
            (&["esker", "stream", "read", "--format", "text"], false),
            (&["esker", "stream", "append", "--format", "json"], false),
            (
                &["esker", "stream", "append", "--format=json", "--json"],
                true,
            ),
            (&["esker", "server", "--set", "logs.format=json"], false),
            (&["esker", "state", "get", "json", "--format"], false),
            (&["esker", "state", "get", "--", "--json"], false),
        ] {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            assert_eq!(is_wanted(&arguments), wanted, "{arguments:?}");
        }
    }
}
