//! `docs/configuration.md`, made from the same schema that the checks use.

use super::check::RULES;
use super::environment::CONFIG_VARIABLE;
use super::error::CODES;
use super::key::{Key, keys};
use super::show::{assignment, document, toml_value};

/// Columns of the comments in the example file.
const COMMENT_WIDTH: usize = 90;

/// The text of `docs/configuration.md`: how the configuration is put together, a table per section,
/// the rules between values, the codes of errors, and a complete example file.
pub fn markdown() -> String {
    let mut text = INTRODUCTION.replace("{config}", CONFIG_VARIABLE);
    text.push_str("\n## Top level\n\nThese keys stand above all sections.\n\n");
    text.push_str(&table(None));
    for section in &keys().sections {
        text.push_str(&format!(
            "\n## `[{}]`\n\n{}\n\n",
            section.name, section.meaning
        ));
        text.push_str(&table(Some(&section.name)));
    }
    text.push_str("\n## Rules between values\n\n");
    text.extend(RULES.iter().map(|rule| format!("- {rule}\n")));
    text.push_str(ERRORS);
    text.extend(
        CODES
            .iter()
            .map(|(code, meaning)| format!("| `{code}` | {meaning} |\n")),
    );
    text.push_str(EXAMPLE);
    text.push_str(&format!("```toml\n{}```\n", example()));
    text
}

const INTRODUCTION: &str = "\
# Configuration of `esker server`

<!-- Generated from the program: change the comments of the fields in crates/server/src/config, then
     ESKER_BLESS=1 cargo test --release -p esker-server configuration_docs_are_current -->

A server runs without any configuration: every key has a default. What differs from it is written
into one TOML file, into the environment, or behind flags.

```console
$ esker server --config esker.toml --listen 127.0.0.1:7171 --set log.segment-size=64MiB
$ ESKER_LOG__SEGMENT_SIZE=64MiB esker server
```

**Precedence.** A flag wins over the environment, the environment over the file, the file over the
default. `esker config show` prints the configuration that results, as TOML, and says of each value
that is not a default what set it. `esker config check` reads it and reports every problem at once.

**The file** is the one that the flag `--config` names, or else the environment variable
`{config}`. Without either no file is read; an `esker.toml` that lies in the current directory is
*not* picked up by itself, so that a server does the same wherever it is started.

**The environment.** The variable of a key is `ESKER_` and the key in capitals, with `_` for `-`
and `__` for the dot behind a section:

| key | variable |
|---|---|
| `data-dir` | `ESKER_DATA_DIR` |
| `log.segment-size` | `ESKER_LOG__SEGMENT_SIZE` |

**Flags.** `--data-dir`, `--listen`, `--insecure-no-auth` and `--partitions` set the keys of their
names; `--set KEY=VALUE` sets any key (`--set limits.connections=100`) and may be given several
times. Setting one key by two flags is an error.

**Unknown keys** are errors, with a suggestion. An unknown variable that starts with `ESKER_` is an
error if it differs from a known one by at most two letters, or starts with the name of a section and
`__`; otherwise it is ignored with a warning, since other programs set such variables too. A variable
that is set but empty is not the same as one that is not set: the empty text is its value.

**Sizes** are a number with a unit: `B`, `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `kB`, `MB`,
`GB`, `TB` (powers of 1000), with or without a space between; a number alone is bytes. `32M` is
refused, because it may mean either.

**Durations** are numbers with units, which are added: `10s`, `1m 30s`, `250ms`, `1h`. A number
without a unit is refused.

**Bounds** are inclusive.
";

const ERRORS: &str = "
## Errors

The message of an error says which key it is about, where the value came from (file and line,
variable or flag), what is wrong and what is allowed. Its code is stable:

| code | meaning |
|---|---|
";

const EXAMPLE: &str = "
## A complete file

Every key with its default. A file needs only the lines that differ.

";

fn table(section: Option<&str>) -> String {
    let mut text =
        String::from("| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
    for key in keys().of_section(section) {
        text.push_str(&format!(
            "| `{}` | {} | `{}` | {} | {} |\n",
            key.name,
            key.kind.name(),
            cell(&toml_value(&key.default)),
            cell(&key.kind.allowed()),
            cell(&key.meaning),
        ));
    }
    text
}

/// Text that does not end the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A configuration file with all keys, their defaults, and what each means.
pub(super) fn example() -> String {
    let entry = |key: &Key| {
        let comment = wrap(&key.meaning) + &wrap(&format!("Allowed: {}.", key.kind.allowed()));
        let line = assignment(key, &key.default);
        format!("{comment}{line}\n\n")
    };
    // A section's header follows the blank line behind the entry above it.
    document(entry)
        .replace("\n\n\n", "\n\n")
        .trim_end()
        .to_string()
        + "\n"
}

/// A paragraph as comment lines.
fn wrap(paragraph: &str) -> String {
    let mut text = String::new();
    let mut line = String::from("#");
    for word in paragraph.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COMMENT_WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text + &line + "\n"
}
