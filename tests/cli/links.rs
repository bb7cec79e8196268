//! Links between the pages of the project: each names a file that is there, and a heading that it has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pages below a directory, but for those of other projects.
fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
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

/// What of a page is text, not code.
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

/// What is in the round brackets of links.
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
            // Elsewhere, or an item that rustdoc looks for.
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

#[test]
fn anchors_are_as_readers_of_the_pages_get_them() {
    let page = "# A page\n## `put --all`, and why\n```\n# no heading\n```\n## Twice\n## Twice\n";
    let expected = ["a-page", "put---all-and-why", "twice", "twice-1"];
    assert_eq!(anchors(page), expected.map(str::to_owned).into());
}
