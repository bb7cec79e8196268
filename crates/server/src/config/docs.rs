//! `docs/operating/configuration.md`, generated from the same schema that the checks use.

use serde_json::Value;

use super::check::RULES;
use super::environment::{BOOTSTRAP_VARIABLE, CONFIG_VARIABLE};
use super::error::CODES;
use super::key::{Key, keys};
use super::show::{assignment, document, toml_value};
use super::statehouse;

/// Columns of the comments in the example file.
const COMMENT_WIDTH: usize = 90;

/// The text of `docs/operating/configuration.md`: how the configuration is put together, a table per section,
/// what triggers a snapshot, the rules between values, the codes of errors, and a complete example
/// file.
pub fn markdown() -> String {
    let mut text = INTRODUCTION
        .replace("{config}", CONFIG_VARIABLE)
        .replace("{bootstrap}", BOOTSTRAP_VARIABLE)
        .replace("{statehouse}", &statehouse::table());
    text.push_str("\n## Top level\n\nThese keys stand above all sections.\n\n");
    text.push_str(&table(None));
    for section in &keys().sections {
        text.push_str(&format!(
            "\n## `[{}]`\n\n{}{}\n\n",
            section.name,
            section.meaning,
            also(section.alias.as_ref().map(|alias| format!("[{alias}]")))
        ));
        text.push_str(&table(Some(&section.name)));
    }
    text.push_str(TRIGGERS);
    text.extend(
        SNAPSHOT_TRIGGERS
            .iter()
            .map(|(knob, where_to, trigger)| format!("| {knob} | {where_to} | {trigger} |\n")),
    );
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

A server runs without any configuration: every key has a default or may stay unset. Other values
come from one TOML file, from the environment, or from flags.

```console
$ esker server --config esker.toml --listen 127.0.0.1:7171 --set log.segment-size=64MiB
$ ESKER_LOG__SEGMENT_SIZE=64MiB esker server
```

**Precedence.** A flag wins over the environment, the environment over the file, the file over the
default. `esker config show` prints the configuration that results, as TOML, and says of each value
that is not a default what set it. `esker config check` reads it and reports every problem at once.

**The file** is the one that the flag `--config` names, or else the environment variable
`{config}`. Without either no file is read; an `esker.toml` that lies in the current directory is
*not* read, so that a server does the same wherever it is started.

**The environment.** The variable of a key is `ESKER_` and the key in capitals, with `_` for `-`
and `__` for the dot behind a section:

| key | variable |
|---|---|
| `data-dir` | `ESKER_DATA_DIR` |
| `log.segment-size` | `ESKER_LOG__SEGMENT_SIZE` |

**Flags.** `--data-dir`, `--listen`, `--insecure-no-auth`, `--partitions`, `--tls-certificate`,
`--tls-private-key`, `--tls-client-ca` and `--tls-self-signed` set the keys of their names;
`--set KEY=VALUE` sets any key (`--set limits.connections=100`) and may be given several times. Setting one
key by two flags is an error.

**Unknown keys** are errors, with a suggestion. An unknown variable that starts with `ESKER_` is an
error if it differs from a known one by at most two letters, or starts with the name of a section and
`__`; otherwise it is ignored with a warning, since other programs set such variables too. A variable
that is set but empty is not the same as one that is not set: the empty text is its value.

**Unset.** Some keys may have no value at all; the meaning of that is described with each. For these,
the empty text means unset, in the file, the environment and a flag alike, and wins like any other value:
`ESKER_SNAPSHOTS__SNAPSHOT_INTERVAL=` unsets a key that the file sets, or that has a default.

**Second names.** Some keys and sections are also accepted under the names that Restate gives them.
Both names of one key in the same file (or both variables) are an error.

**Statehouse's variables** are understood too: they win over the file, and lose to the `ESKER_`
variable of the same key. `STATEHOUSE_ADDR` and `STATEHOUSE_LISTEN_ADDR` may name `localhost`; both with
different values are an error. A warning names others that start with `STATEHOUSE_`.

| variable | key |
|---|---|
{statehouse}
**Secrets** are never printed: `esker config show` and messages say `(hidden)`. Give them in the file,
which only the server should be able to read, or in the environment; other users of the machine see
flags.

**For one start.** `--bootstrap` (or `{bootstrap}`) decides what an empty data directory means: `new`, a
cluster begins here; `restore`, every partition is restored from the repository; `join`, this node
joins a cluster. Without it, an empty directory begins a new cluster, and is refused if the repository
holds snapshots of this cluster. It is not a key, so that no file sets it for every start; remove it
from the environment, too, once the server serves. In a directory that is in use, `restore` counts for
one start that serves, and later ones warn of it. `--empty-partitions`, beside it, names partitions of
which no copy is left: they begin empty.

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

const TRIGGERS: &str = "
## What triggers a snapshot

Of a partition; all keys are in `[snapshots]`. A **local** snapshot stays in the data directory: it
lets the log be trimmed, and bounds what a restart replays. One in the **repository** survives the
machine, if the repository does.

| knob | snapshot | when |
|---|---|---|
";

/// What makes a partition take a snapshot: the setting, where the snapshot goes, and when it is taken.
pub(super) const SNAPSHOT_TRIGGERS: &[(&str, &str, &str)] = &[
    (
        "`local-snapshot-num-records`",
        "local",
        "This many entries of the log were applied since the last local one.",
    ),
    (
        "`local-snapshot-bytes`",
        "local",
        "This many bytes of log were applied since the last local one.",
    ),
    (
        "`snapshot-interval`",
        "repository",
        "This long after the newest, if anything was applied since. With `snapshot-interval-num-records` \
         set as well, both must hold.",
    ),
    (
        "`snapshot-interval-num-records`",
        "repository",
        "This many records since the newest. With `snapshot-interval` set as well, both must hold.",
    ),
    (
        "`recovery-budget`",
        "repository",
        "Replaying what came after the newest is predicted to take longer, even if no interval has passed.",
    ),
    (
        "`max-log-bytes`, `on-log-full`",
        "repository",
        "The log that is kept for the repository reaches `max-log-bytes`. If it grows beyond, it is trimmed anyway \
         or appends are refused, as set by `on-log-full`.",
    ),
    ("`esker snapshot create`", "repository", "One is requested."),
    (
        "(none)",
        "repository",
        "A partition is created, or a new lineage begins after a restore with a loss.",
    ),
    (
        "`snapshot-on-stop`",
        "repository",
        "The server is asked to stop.",
    ),
];

const EXAMPLE: &str = "
## A complete file

Every key with its default; those without one are comments. A file needs only the lines that differ.

";

fn table(section: Option<&str>) -> String {
    let mut text =
        String::from("| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
    for key in keys().of_section(section) {
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {}{} |\n",
            key.name,
            key.kind.name(),
            match &key.default {
                Value::Null => "unset".into(),
                default => format!("`{}`", cell(&toml_value(default))),
            },
            cell(&key.allowed()),
            cell(&key.meaning),
            also(key.alias.clone()),
        ));
    }
    text
}

/// The sentence about a second name.
fn also(alias: Option<String>) -> String {
    alias.map_or_else(String::new, |alias| format!(" Also accepted as `{alias}`."))
}

/// Escapes what would end the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A configuration file with all keys, their defaults, and what each means.
pub(super) fn example() -> String {
    let entry = |key: &Key| {
        let comment = wrap(&key.meaning) + &wrap(&format!("Allowed: {}.", key.allowed()));
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
