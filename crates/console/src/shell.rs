//! Commands to copy, as a shell reads them.
//!
//! Names come from clients, so they may hold anything: a name is one word of the command, whatever is in it, and
//! pasting it into a terminal has no other effect. Characters that cannot be seen are written as escapes, so what
//! is copied is what is shown.

use crate::words::is_invisible;

/// A command with options and arguments.
pub fn command(name: &str, options: &[(&str, &str)], arguments: &[&str]) -> String {
    let mut text = name.to_owned();
    for (option, value) in options {
        // A value that begins with a hyphen is taken for an option if it is a word of its own.
        let joint = if value.starts_with('-') { '=' } else { ' ' };
        text.push_str(&format!(" {option}{joint}{}", quoted(value)));
    }
    if arguments.iter().any(|it| it.starts_with('-')) {
        text.push_str(" --");
    }
    for argument in arguments {
        text.push(' ');
        text.push_str(&quoted(argument));
    }
    text
}

/// A name as one word of a shell.
pub fn quoted(name: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_./:@%+,=".contains(it);
    // zsh replaces a word that begins with `=` by the path of a command.
    if !name.is_empty() && !name.starts_with('=') && name.chars().all(is_plain) {
        return name.to_owned();
    }
    // A terminal acts on control characters even between quotes: an escape sequence ends a paste, and what
    // follows is typed.
    if !name.chars().any(is_invisible) {
        return format!("'{}'", name.replace('\'', r"'\''"));
    }
    let mut word = "$'".to_owned();
    for character in name.chars() {
        match character {
            '\'' | '\\' => {
                word.push('\\');
                word.push(character);
            }
            '\n' => word.push_str(r"\n"),
            '\t' => word.push_str(r"\t"),
            it if is_invisible(it) => match u32::from(it) {
                code @ 0..0x80 => word.push_str(&format!(r"\x{code:02x}")),
                code @ 0x80..0x1_0000 => word.push_str(&format!(r"\u{code:04x}")),
                code => word.push_str(&format!(r"\U{code:08x}")),
            },
            it => word.push(it),
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// The words that a shell makes of a command, or nothing if there is no such shell here.
    fn words(shell: &str, command: &str) -> Option<Vec<String>> {
        let script = format!("printf '%s\\0' {command}");
        let mut bash = Command::new(shell);
        bash.args(["-c", &script]).env("LC_ALL", "C.UTF-8");
        let output = bash.output().ok()?;
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        Some(text.split_terminator('\0').map(str::to_owned).collect())
    }

    #[test]
    fn a_name_is_one_word_and_shows_no_control_character() {
        assert_eq!(quoted("a/b-c"), "a/b-c");
        assert_eq!(quoted("a; rm -rf ~"), "'a; rm -rf ~'");
        assert_eq!(quoted("a'; rm -rf /"), r"'a'\''; rm -rf /'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("=ls"), "'=ls'");
        assert_eq!(quoted("a\nb\x1b[201~'\\"), r"$'a\nb\x1b[201~\'\\'");
        assert_eq!(quoted("\u{202e}\u{e0001}"), r"$'\u202e\U000e0001'");
    }

    #[test]
    fn a_name_that_looks_like_an_option_is_none() {
        let made = command(
            "esker state get",
            &[("--namespace", "-n")],
            &["--help", "k"],
        );
        assert_eq!(made, "esker state get --namespace=-n -- --help k");
        let made = command("esker state get", &[("--namespace", "n")], &["a", "k"]);
        assert_eq!(made, "esker state get --namespace n a k");
    }

    #[test]
    fn a_shell_reads_a_name_as_it_is() {
        for name in [
            "a; rm -rf ~",
            "it's \"$HOME\" `id` $(id) \\ ! * ? [a] {b,c} ~ # & | < > ( )",
            "two\nlines\r\n\tand\x1b[201~\x07\x7f",
            "\u{202e}right to left\u{feff}",
            "\\",
            "'",
            "\n",
        ] {
            if let Some(read) = words("bash", &quoted(name)) {
                assert_eq!(read, [name], "{}", quoted(name));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_reads_any_name_as_it_is(name in r"[^\x00]{1,20}") {
            let word = quoted(&name);
            prop_assert!(!word.chars().any(is_invisible), "{word:?}");
            if let Some(read) = words("bash", &word) {
                prop_assert_eq!(read, [name]);
            }
        }
    }
}
