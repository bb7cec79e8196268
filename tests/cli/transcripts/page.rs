//! A page with transcripts: runs its commands, and compares their output with what the page shows.

use super::*;

/// A shell in which `esker` is this build.
pub fn shell(command: &str, dir: &Path) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_esker"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(dir)
        .env_remove(BLESS)
        .env("XDG_CACHE_HOME", dir.join(".cache"))
        .env("PATH", path);
    shell
}

/// A page with transcripts.
pub struct Page {
    pub name: String,
    pub path: PathBuf,
    pub lines: Vec<String>,
    pub steps: Vec<Step>,
}

/// A command, and its output on the page.
pub struct Step {
    /// The last heading before it.
    pub heading: String,
    pub command: String,
    pub printed: String,
    /// The lines of the page that have its output.
    pub at: std::ops::Range<usize>,
    /// Its actual output; `None` if it was not run.
    pub actual: Option<String>,
}

impl Page {
    pub fn read(name: &str) -> Page {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut steps: Vec<Step> = Vec::new();
        let mut block: Option<&str> = None;
        let mut heading = "";
        for (number, line) in lines.iter().enumerate() {
            if let Some(kind) = line.strip_prefix("```") {
                block = block.is_none().then_some(kind);
            } else if block.is_none() && line.starts_with('#') {
                heading = line.trim_start_matches('#').trim();
            } else if block == Some("console") {
                if let Some(command) = line.strip_prefix("$ ") {
                    steps.push(Step {
                        heading: heading.to_owned(),
                        command: command.to_owned(),
                        printed: String::new(),
                        at: number + 1..number + 1,
                        actual: None,
                    });
                } else {
                    let step = steps.last_mut().expect("a command before what it prints");
                    step.printed += line;
                    step.printed.push('\n');
                    step.at.end = number + 1;
                }
            }
        }
        assert!(!steps.is_empty(), "{name} has no transcript");
        let name = name.to_owned();
        Page {
            name,
            path,
            lines,
            steps,
        }
    }

    /// Runs the commands below a heading (all of the page, if the heading is empty), one after the other.
    pub fn run(&mut self, heading: &str, dir: &Path, variables: &[(&str, &str)], server: &Server) {
        let address = server.address();
        let asks = |text: &str| {
            text.replace(SHOWN_URL, &server.url)
                .replace("localhost:7070", address)
        };
        let shows = |text: String| text.replace(&server.url, SHOWN_URL);
        self.run_with(heading, dir, variables, asks, shows);
    }

    pub fn run_without_server(&mut self, heading: &str, dir: &Path, variables: &[(&str, &str)]) {
        self.run_with(heading, dir, variables, str::to_owned, |text| text);
    }

    pub fn run_with(
        &mut self,
        heading: &str,
        dir: &Path,
        variables: &[(&str, &str)],
        asks: impl Fn(&str) -> String,
        shows: impl Fn(String) -> String,
    ) {
        let bless = std::env::var_os(BLESS).is_some();
        let mut ran = 0;
        for step in &mut self.steps {
            if !heading.is_empty() && step.heading != heading {
                continue;
            }
            ran += 1;
            let mut shell = shell(&format!("{{ {}; }} 2>&1", asks(&step.command)), dir);
            shell.envs(variables.iter().copied());
            let output = run(shell, b"");
            let actual = shows(String::from_utf8(output.stdout).unwrap());
            let actual = without_remarks(&actual);
            if !bless {
                assert_eq!(
                    shape(&step.printed),
                    shape(&actual),
                    "{}: `{}` prints\n{actual}",
                    self.name,
                    step.command
                );
            }
            step.actual = Some(as_shown(&actual));
        }
        assert!(ran > 0, "{} has no command below {heading:?}", self.name);
    }

    /// Marks commands below these headings as run by other tests.
    pub fn shown_elsewhere(&mut self, headings: &[&str]) {
        for step in &mut self.steps {
            if headings.contains(&step.heading.as_str()) {
                step.actual = Some(step.printed.clone());
            }
        }
    }

    /// Checks that every command was run. Rewrites the page, if requested.
    pub fn finish(mut self) {
        for step in &self.steps {
            assert!(
                step.actual.is_some(),
                "{}: `{}` was not run",
                self.name,
                step.command
            );
        }
        if std::env::var_os(BLESS).is_none() {
            return;
        }
        for step in self.steps.iter().rev() {
            let actual = step.actual.as_deref().unwrap_or_default();
            // A difference of numbers alone does not rewrite a page.
            if shape(&step.printed) != shape(actual) || std::env::var(BLESS).unwrap() == "all" {
                self.lines
                    .splice(step.at.clone(), actual.lines().map(str::to_owned));
            }
        }
        std::fs::write(&self.path, self.lines.join("\n") + "\n").unwrap();
    }
}

/// The output without what a command says while it waits, which a page does not show: on a busy machine, it waits longer.
fn without_remarks(printed: &str) -> String {
    const REMARKS: [&str; 2] = [
        ": no answer yet after ",
        "A snapshot that is being taken comes to its end; Ctrl-C again ends at once.",
    ];
    let is_remark = |line: &&str| REMARKS.iter().any(|remark| line.contains(remark));
    let lines = printed.split_inclusive('\n');
    lines.filter(|line| !is_remark(line)).collect()
}

/// The output, with directories and host as pages show them.
pub fn as_shown(printed: &str) -> String {
    let is_scratch = |name: &str| name.starts_with(".tmp") && name.len() == 10;
    let mut shown = String::new();
    for word in printed.split_inclusive([' ', '\n', '`', '=']) {
        let (before, path) = word.split_at(word.find('/').unwrap_or(word.len()));
        let (scheme, path) = match path.strip_prefix("//") {
            Some(path) => ("//", path),
            None => ("", path),
        };
        let mut names = path.split('/');
        // A scratch directory of these tests, or of a demo.
        let shortened = if names.any(is_scratch) {
            let rest: Vec<_> = names.collect();
            format!("{before}{scheme}/srv/app/{}", rest.join("/"))
        } else if let Some((_, rest)) = path.split_once("/esker-demo-") {
            format!("{before}{scheme}/tmp/esker-demo-{rest}")
        } else {
            word.to_owned()
        };
        shown += &match shortened.trim_end() == host() {
            true => shortened.replace(&host(), "node-1"),
            false => shortened,
        };
    }
    shown
}

/// The name of this host.
fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => "node-1".to_owned(),
        host => host.to_owned(),
    }
}

/// A text with every number as `0`, every duration as `0 s`, the scratch directory of a demo as `DIR`, random
/// names as one name, this host as `node-1`, and any white space as one space.
fn shape(text: &str) -> Vec<String> {
    let host = host();
    text.lines()
        .map(|line| {
            let line = without_random_names(line);
            let mut words: Vec<String> = Vec::new();
            for word in line.split_whitespace() {
                let word = match word {
                    _ if word.contains("/esker-demo-") => "DIR".to_owned(),
                    _ if word == host => "node-0".to_owned(),
                    _ => numbers_as_zero(word),
                };
                let unit = word.trim_end_matches([',', ';', ')', ':', '.']);
                let after_number = words.last().is_some_and(|last| last.ends_with('0'));
                if after_number && matches!(unit, "ms" | "s" | "min") {
                    let rest = &word[unit.len()..];
                    // `2 min 5 s` is one duration.
                    if words.len() > 1 && words[words.len() - 2] == "s" {
                        words.pop();
                        words.pop();
                    }
                    words.push(format!("s{rest}"));
                } else {
                    words.push(word);
                }
            }
            words.join(" ")
        })
        .filter(|line| !line.is_empty())
        .collect()
}

/// A line with the names of snapshots, checksums, directories and units of speed made uniform.
fn without_random_names(line: &str) -> String {
    let word_end = |rest: &str| {
        rest.find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len())
    };
    let mut shaped = String::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let end = word_end(rest);
        let word = &rest[..end];
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if let Some(id) = rest.strip_prefix("snap_1") {
            shaped += "snap";
            rest = &id[word_end(id)..];
        } else if let Some(path) = rest.strip_prefix("file://")
            && let Some(at) = path.find("/backups")
        {
            shaped += "file://";
            rest = &path[at..];
        } else if end >= 32 && word.bytes().all(is_hex) {
            shaped += "HEX";
            rest = &rest[end..];
        } else if matches!(word, "B" | "KiB" | "MiB" | "GiB") && rest[end..].starts_with("/s") {
            shaped += "B";
            rest = &rest[end..];
        } else {
            let end = end.max(c.len_utf8());
            shaped += &rest[..end];
            rest = &rest[end..];
        }
    }
    shaped
}

/// `10,400` and `1.68` as `0`.
fn numbers_as_zero(word: &str) -> String {
    let mut zeroed = String::new();
    let mut rest = word;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        zeroed += &rest[..start];
        zeroed.push('0');
        let number = &rest[start..];
        let end = number
            .char_indices()
            .find(|&(index, c)| {
                let within = matches!(c, ',' | '.')
                    && number[index + 1..].starts_with(|c: char| c.is_ascii_digit());
                !c.is_ascii_digit() && !within
            })
            .map_or(number.len(), |(index, _)| index);
        rest = &number[end..];
    }
    zeroed + rest
}

#[test]
fn a_shape_forgets_numbers_and_nothing_else() {
    assert_eq!(
        shape(
            "  first answer     86 ms   after exec; 1,134 log entries\n\n at /tmp/esker-demo-a/data."
        ),
        ["first answer 0 s after exec; 0 log entries", "at DIR"]
    );
    assert_eq!(shape("in 1.24 s, (2 min 5 s)"), shape("in 9 ms, (101 ms)"));
    assert_ne!(shape("records 0 to 1 are gone"), shape("record 0 is gone"));
    assert_eq!(
        shape("file:///tmp/x/backups/0/lsn_00042-snap_1ab, 3.2 MiB/s"),
        shape("file:///srv/backups/7/lsn_00200-snap_1ZzTop09, 120 KiB/s")
    );
    assert_eq!(
        shape(&format!("ssts/{}.sst", "0a".repeat(24))),
        ["ssts/HEX.sst"]
    );
}
