//! Links between the pages of the project: each names an existing file and an existing heading. The same
//! holds for paths and names in backticks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pages below a directory, except those of other projects.
pub fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "fixtures", "node_modules"].contains(&&*name) {
                pages(&path, found);
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The text of a page without its code blocks.
fn prose(page: &str) -> String {
    let mut in_code = false;
    let lines = page.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for heading in prose(page).lines().filter(|line| line.starts_with('#')) {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        });
        let anchor: String = kept.collect();
        let mut names = (0..).map(|n| match n {
            0 => anchor.clone(),
            n => format!("{anchor}-{n}"),
        });
        let free = names.find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

/// The targets of links.
fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let links = prose.split("](").skip(1);
    links
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link.to_owned())
        .collect()
}

#[test]
fn every_link_names_a_file_that_is_there_and_a_heading_that_it_has() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    pages(root, &mut all);
    assert!(all.len() > 10);
    let mut broken = Vec::new();
    let mut checked = 0;
    for path in &all {
        let page = std::fs::read_to_string(path).unwrap();
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            // An external link, or an item that rustdoc checks.
            if file.contains("://") || file.starts_with("crate::") {
                continue;
            }
            checked += 1;
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let is_there = match (anchor, std::fs::read_to_string(&target)) {
                ("", _) => target.exists(),
                (anchor, Ok(page)) => anchors(&page).contains(anchor),
                (_, Err(_)) => false,
            };
            if !is_there {
                broken.push(format!("{}: ({link})", path.display()));
            }
        }
    }
    assert!(checked > 20);
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Text in backticks, outside of blocks of code.
fn code_spans(page: &str) -> Vec<String> {
    let prose = prose(page);
    let spans = prose.split('`').skip(1).step_by(2);
    spans
        .filter(|span| !span.contains('\n'))
        .map(str::to_owned)
        .collect()
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expanded(path: &str) -> Vec<String> {
    match path.split_once('{').zip(path.split_once('}')) {
        None => vec![path.to_owned()],
        Some(((before, rest), (_, after))) => {
            let names = rest.split('}').next().unwrap().split(',');
            names.map(|name| format!("{before}{name}{after}")).collect()
        }
    }
}

/// Whether a path of the repository exists, or a module after the short name of its crate. `None` if it is
/// neither kind of path.
fn exists(root: &Path, path: &str) -> Option<bool> {
    const TOP: &[&str] = &[
        ".ci",
        "bench",
        "crates",
        "docs",
        "examples",
        "packaging",
        "scripts",
        "src",
        "tests",
        "tools",
    ];
    let is_path = |c: char| c.is_ascii_alphanumeric() || "/._-{},".contains(c);
    if !path.chars().all(is_path) {
        return None;
    }
    let (first, rest) = path.split_once('/')?;
    let crate_src = root.join("crates").join(first).join("src");
    if TOP.contains(&first) {
        return Some(root.join(path).exists());
    }
    if !crate_src.is_dir() || rest.is_empty() {
        return None;
    }
    let module = crate_src.join(rest);
    Some(module.exists() || module.with_extension("rs").exists())
}

#[test]
fn every_path_in_backticks_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    pages(root, &mut all);
    let mut missing = Vec::new();
    let mut checked = 0;
    for page in &all {
        // The list of changes may name removed files.
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        for span in code_spans(&std::fs::read_to_string(page).unwrap()) {
            for path in expanded(&span) {
                if let Some(is_there) = exists(root, &path) {
                    checked += 1;
                    if !is_there {
                        missing.push(format!("{}: {path}", page.display()));
                    }
                }
            }
        }
    }
    assert!(checked > 100, "{checked}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The modules of each crate that its row in the table of `ARCHITECTURE.md` names exist, and so do the names
/// of items.
#[test]
fn every_name_in_the_architecture_is_in_the_code() {
    fn sources(dir: &Path, found: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();

    let rows = page.lines().filter(|line| line.starts_with("| `crates/"));
    for row in rows {
        let spans = code_spans(row);
        let src = root.join(&spans[0]).join("src");
        let is_module = |name: &&String| {
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
            name.chars().all(is_word) && **name != "node"
        };
        for name in spans[1..].iter().filter(is_module) {
            let path = src.join(name);
            let is_protocol = src.join("..").join(name).is_dir();
            if !path.is_dir() && !path.with_extension("rs").exists() && !is_protocol {
                missing.push(format!("{}: module {name}", spans[0]));
            }
        }
    }

    let mut code = String::new();
    sources(&root.join("crates"), &mut code);
    let words: BTreeSet<&str> = code
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    for span in code_spans(&page) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let begins_a_type = span.starts_with(|c: char| c.is_ascii_uppercase());
        let is_item = begins_a_type && span.contains(|c: char| c.is_ascii_lowercase());
        if !span.chars().all(is_name) || !is_item {
            continue;
        }
        let parts = span.split("::").filter(|part| !words.contains(part));
        missing.extend(parts.map(|part| format!("{span}: {part}")));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Keys of the configuration, as the generated page lists them.
fn settings(page: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("## `[") {
            section = name.split(']').next().unwrap().to_owned() + ".";
        } else if let Some(key) = line.strip_prefix("| `") {
            found.insert(section.clone() + key.split('`').next().unwrap());
        }
    }
    found
}

#[test]
fn every_setting_that_a_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/operating/configuration.md")).unwrap();
    let settings = settings(&page);
    let sections: BTreeSet<_> = settings
        .iter()
        .filter_map(|setting| setting.split_once('.'))
        .map(|(section, _)| section)
        .collect();
    let mut all = Vec::new();
    pages(root, &mut all);
    let mut unknown = Vec::new();
    let mut checked = 0;
    for page in all {
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        for span in code_spans(&std::fs::read_to_string(&page).unwrap()) {
            // `section.key`, possibly with a value.
            let setting = span.split([' ', '=']).next().unwrap();
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let Some((section, key)) = setting.split_once('.') else {
                continue;
            };
            // Names of files are no settings.
            let is_file = ["json", "rs", "md", "toml", "proto"].contains(&key);
            if !sections.contains(section) || !key.chars().all(is_name) || is_file {
                continue;
            }
            checked += 1;
            if !settings.contains(setting) {
                unknown.push(format!("{}: {setting}", page.display()));
            }
        }
    }
    assert!(checked > 50, "{checked}");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_page_of_docs_is_in_the_index() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let index = std::fs::read_to_string(docs.join("README.md")).unwrap();
    let linked: BTreeSet<PathBuf> = links(&index).iter().map(|link| docs.join(link)).collect();
    let mut all = Vec::new();
    pages(&docs, &mut all);
    // The index of the design records lists those in this directory.
    let design = docs.join("design");
    let is_listed = |page: &PathBuf| {
        linked.contains(page) || page.starts_with(&design) || page.ends_with("docs/README.md")
    };
    let missing: Vec<_> = all.iter().filter(|page| !is_listed(page)).collect();
    assert!(
        missing.is_empty(),
        "docs/README.md has no link to {missing:#?}"
    );
}

/// The versions on the page of formats are those that the named source files write.
#[test]
fn every_version_on_the_page_of_formats_is_that_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/reference/formats.md")).unwrap();
    let mut checked = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let is_version = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
        let word = cells[2].split([' ', ';']).next().unwrap();
        let path = cells[3].trim_matches('`');
        if word.is_empty() || !word.chars().all(is_version) || !path.ends_with(".rs") {
            continue;
        }
        checked += 1;
        let code = std::fs::read_to_string(root.join(path)).unwrap();
        let is_written = code
            .lines()
            .filter(|line| line.contains("const "))
            .any(|line| {
                let names = ["FORMAT", "VERSION", "MAGIC"];
                let value = line.split(" = ").nth(1).unwrap_or_default();
                let value = value.trim_matches(|c: char| !c.is_ascii_alphanumeric() || c == 'b');
                names.iter().any(|name| line.contains(name)) && value == word
            });
        assert!(
            is_written,
            "{path} has no constant of version {word}: {row}"
        );
    }
    assert!(checked >= 12, "{checked}");
}

#[test]
fn anchors_are_as_readers_of_the_pages_get_them() {
    let page = "# A page\n## `put --all`, and why\n```\n# no heading\n```\n## Twice\n## Twice\n";
    let expected = ["a-page", "put---all-and-why", "twice", "twice-1"];
    assert_eq!(anchors(page), expected.map(str::to_owned).into());
}
