//! The modules of a crate, the names that they define, and the names that they use from each other.
//!
//! A name counts as used from the module that defines it, even if it is imported through a `pub use`. Code
//! for tests does not count, and neither do uses between a module and one below it: they are one unit in
//! several files.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

use crate::graph::References;

/// A module: a file, or a part of one in braces.
pub struct Module {
    parent: Option<usize>,
    /// Names of the modules above it and its own, without the crate's.
    names: Vec<String>,
    children: HashMap<String, usize>,
    /// Names that it defines.
    defined: HashSet<String>,
    /// Names that a `use` imports, and the paths that they refer to.
    imported: HashMap<String, Vec<String>>,
    /// Modules that a glob imports.
    globs: Vec<Vec<String>>,
    /// Paths in its code, each with the first segments of an imported name resolved.
    paths: BTreeSet<Vec<String>>,
}

impl Module {
    pub fn path(&self) -> String {
        match self.names.is_empty() {
            true => "crate".to_owned(),
            false => self.names.join("::"),
        }
    }
}

/// A crate.
pub struct Crate {
    pub modules: Vec<Module>,
}

/// Most `pub use` declarations through which a name is followed.
const MAX_STEPS: usize = 20;

impl Crate {
    /// Reads the crate whose sources are in a directory, from `lib.rs` or `main.rs` on.
    pub fn read(dir: &Path) -> Result<Crate, String> {
        let mut it = Crate {
            modules: Vec::new(),
        };
        let root = ["lib.rs", "main.rs"].map(|name| dir.join(name));
        let root = root.iter().find(|path| path.is_file());
        let root = root.ok_or_else(|| format!("{} has no lib.rs or main.rs", dir.display()))?;
        it.read_file(root, dir, None, "")?;
        Ok(it)
    }

    /// Reads a file; `dir` has the modules that it declares.
    fn read_file(
        &mut self,
        file: &Path,
        dir: &Path,
        parent: Option<usize>,
        name: &str,
    ) -> Result<usize, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
        let text = std::fs::read_to_string(file).map_err(|e| failed(&e))?;
        let parsed = syn::parse_file(&text).map_err(|e| failed(&e))?;
        self.read_items(parsed.items, dir, parent, name)
    }

    fn read_items(
        &mut self,
        items: Vec<Item>,
        dir: &Path,
        parent: Option<usize>,
        name: &str,
    ) -> Result<usize, String> {
        let mut names = parent.map_or(Vec::new(), |parent| self.modules[parent].names.clone());
        if parent.is_some() {
            names.push(name.to_owned());
        }
        let own = self.modules.len();
        self.modules.push(Module {
            parent,
            names,
            children: HashMap::new(),
            defined: HashSet::new(),
            imported: HashMap::new(),
            globs: Vec::new(),
            paths: BTreeSet::new(),
        });
        for item in items {
            if is_for_tests(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = module.ident.to_string();
                    let below = dir.join(&name);
                    let child = match module.content {
                        Some((_, items)) => self.read_items(items, &below, Some(own), &name)?,
                        None => {
                            let file = file_of(dir, &name)?;
                            self.read_file(&file, &below, Some(own), &name)?
                        }
                    };
                    self.modules[own].children.insert(name, child);
                }
                Item::Use(item) => self.import(own, &item.tree, Vec::new()),
                item => {
                    if let Some(name) = defined_name(&item) {
                        self.modules[own].defined.insert(name);
                    }
                    let mut paths = Paths::default();
                    paths.visit_item(&item);
                    for tree in paths.uses {
                        self.import(own, &tree, Vec::new());
                    }
                    self.modules[own].paths.extend(paths.found);
                }
            }
        }
        Ok(own)
    }

    fn import(&mut self, module: usize, tree: &UseTree, mut path: Vec<String>) {
        match tree {
            UseTree::Path(tree_path) => {
                path.push(tree_path.ident.to_string());
                self.import(module, &tree_path.tree, path);
            }
            UseTree::Name(name) => {
                let mut name = name.ident.to_string();
                if name == "self" {
                    name = path.last().cloned().unwrap_or(name);
                } else {
                    path.push(name.clone());
                }
                self.bring(module, name, path);
            }
            UseTree::Rename(rename) => {
                if rename.ident != "self" {
                    path.push(rename.ident.to_string());
                }
                self.bring(module, rename.rename.to_string(), path);
            }
            UseTree::Glob(_) => self.modules[module].globs.push(path),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(module, tree, path.clone());
                }
            }
        }
    }

    fn bring(&mut self, module: usize, name: String, path: Vec<String>) {
        let module = &mut self.modules[module];
        module.paths.insert(path.clone());
        module.imported.insert(name, path);
    }

    /// The names that each module uses from each other one.
    pub fn references(&self) -> References {
        let mut references: References = BTreeMap::new();
        for (from, module) in self.modules.iter().enumerate() {
            let globs = module.globs.iter().map(|glob| {
                let mut path = glob.clone();
                path.push("*".to_owned());
                path
            });
            for path in module.paths.iter().cloned().chain(globs) {
                let Some((to, name)) = self.resolve(from, &path, 0) else {
                    continue;
                };
                if from != to && !self.is_below(from, to) && !self.is_below(to, from) {
                    references.entry((from, to)).or_default().insert(name);
                }
            }
        }
        references
    }

    fn is_below(&self, below: usize, above: usize) -> bool {
        let mut at = self.modules[below].parent;
        while let Some(parent) = at {
            if parent == above {
                return true;
            }
            at = self.modules[parent].parent;
        }
        false
    }

    /// The module that defines the target of a path in `module`, and its name; `None` if it is of another
    /// crate.
    fn resolve(&self, module: usize, path: &[String], steps: usize) -> Option<(usize, String)> {
        if steps > MAX_STEPS {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.within(0, rest, steps),
            "self" => self.within(module, rest, steps),
            "super" => self.within(self.modules[module].parent?, rest, steps),
            name => {
                let it = &self.modules[module];
                if it.children.contains_key(name) || it.defined.contains(name) {
                    return self.within(module, path, steps);
                }
                // An import whose path equals its name is of another crate.
                let imported = it.imported.get(name).filter(|to| to.as_slice() != path);
                if let Some(imported) = imported {
                    let whole: Vec<_> = imported.iter().chain(rest).cloned().collect();
                    return self.resolve(module, &whole, steps + 1);
                }
                it.globs.iter().find_map(|glob| {
                    let whole: Vec<_> = glob.iter().chain(path).cloned().collect();
                    let glob = (glob.as_slice() != path).then_some(whole)?;
                    self.resolve(module, &glob, steps + 1)
                })
            }
        }
    }

    /// The same, for a path that begins in this module.
    fn within(&self, module: usize, path: &[String], steps: usize) -> Option<(usize, String)> {
        let Some((first, rest)) = path.split_first() else {
            return Some((module, "self".to_owned()));
        };
        let it = &self.modules[module];
        if first == "super" {
            return self.within(it.parent?, rest, steps);
        }
        if first == "*" {
            return Some((module, "*".to_owned()));
        }
        if let Some(child) = it.children.get(first) {
            return self.within(*child, rest, steps);
        }
        if it.defined.contains(first) {
            return Some((module, first.clone()));
        }
        if let Some(imported) = it.imported.get(first) {
            let whole: Vec<_> = imported.iter().chain(rest).cloned().collect();
            return self.resolve(module, &whole, steps + 1);
        }
        it.globs.iter().find_map(|glob| {
            let whole: Vec<_> = glob.iter().chain(path).cloned().collect();
            self.resolve(module, &whole, steps + 1)
        })
    }
}

fn file_of(dir: &Path, name: &str) -> Result<PathBuf, String> {
    let files = [
        dir.join(format!("{name}.rs")),
        dir.join(name).join("mod.rs"),
    ];
    let file = files.into_iter().find(|file| file.is_file());
    file.ok_or_else(|| format!("{} has no module {name}", dir.display()))
}

/// Whether an item exists for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let words = |tokens: &TokenStream| {
            let mut words = Vec::new();
            collect_words(tokens.clone(), &mut words);
            words
        };
        match &attribute.meta {
            syn::Meta::Path(path) => path.is_ident("test"),
            syn::Meta::List(list) if list.path.is_ident("cfg") => {
                let words = words(&list.tokens);
                words.contains(&"test".to_owned()) && !words.contains(&"not".to_owned())
            }
            _ => false,
        }
    })
}

fn collect_words(tokens: TokenStream, words: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) => words.push(word.to_string()),
            TokenTree::Group(group) => collect_words(group.stream(), words),
            _ => {}
        }
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(it) => &it.attrs,
        Item::Enum(it) => &it.attrs,
        Item::Fn(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Trait(it) => &it.attrs,
        Item::Type(it) => &it.attrs,
        Item::Union(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

fn defined_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(it) => &it.ident,
        Item::Enum(it) => &it.ident,
        Item::Fn(it) => &it.sig.ident,
        Item::Macro(it) => it.ident.as_ref()?,
        Item::Static(it) => &it.ident,
        Item::Struct(it) => &it.ident,
        Item::Trait(it) => &it.ident,
        Item::Type(it) => &it.ident,
        Item::Union(it) => &it.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Collects the paths of an item.
#[derive(Default)]
struct Paths {
    found: BTreeSet<Vec<String>>,
    uses: Vec<UseTree>,
}

impl<'a> Visit<'a> for Paths {
    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments = path.segments.iter();
        self.found
            .insert(segments.map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.uses.push(item.tree.clone());
    }

    fn visit_macro(&mut self, it: &'a syn::Macro) {
        // Paths among a macro's tokens: names with `::` between them.
        collect_paths(it.tokens.clone(), &mut self.found);
        syn::visit::visit_macro(self, it);
    }
}

fn collect_paths(tokens: TokenStream, found: &mut BTreeSet<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(word) => {
                if colons != 2 && !path.is_empty() {
                    found.insert(std::mem::take(&mut path));
                }
                path.push(word.to_string());
                colons = 0;
            }
            TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
            other => {
                if !path.is_empty() {
                    found.insert(std::mem::take(&mut path));
                }
                colons = 0;
                if let TokenTree::Group(group) = other {
                    collect_paths(group.stream(), found);
                }
            }
        }
    }
    if !path.is_empty() {
        found.insert(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::cycles;

    /// The cycles of a crate with these files, as the paths of modules.
    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let it = Crate::read(dir.path()).unwrap();
        let cycles = cycles(it.modules.len(), &it.references()).into_iter();
        cycles
            .map(|cycle| cycle.iter().map(|at| it.modules[*at].path()).collect())
            .collect()
    }

    #[test]
    fn modules_that_take_from_each_other_are_a_cycle() {
        let lib = "mod a; mod b; mod c;";
        let c = "pub struct C;";
        for (a, b) in [
            (
                "use crate::b::B; pub struct A;",
                "use super::a::A; pub struct B;",
            ),
            (
                "pub struct A(crate::b::B);",
                "pub fn b() { crate::a::A::new(); } pub struct B;",
            ),
            (
                "use crate::b; pub struct A(b::B);",
                "pub struct B(super::a::A);",
            ),
            (
                "use crate::b::*; pub struct A;",
                "use crate::{c::C, a::A}; pub struct B;",
            ),
            (
                "pub struct A; fn f() { g!(crate::b::B::new()); }",
                "use crate::a::{self}; pub struct B(a::A);",
            ),
        ] {
            let files = [("lib.rs", lib), ("a.rs", a), ("b.rs", b), ("c.rs", c)];
            assert_eq!(found(&files), [["a", "b"]], "{a} | {b}");
        }
        let files = [
            ("lib.rs", lib),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "use crate::c::C; pub struct B;"),
            ("c.rs", c),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn a_name_is_of_the_module_that_defines_it() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::A;"),
            ("a.rs", "use crate::b::inner::B; pub struct A;"),
            ("b/mod.rs", "pub mod inner; pub use inner::B; use crate::A;"),
            ("b/inner.rs", "pub struct B;"),
        ];
        // `a` uses a name of the child that the parent re-exports, and the parent uses `a`.
        assert!(found(&files).is_empty());
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::A;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b/mod.rs", "pub mod inner; pub use inner::B;"),
            ("b/inner.rs", "pub struct B(crate::A);"),
        ];
        assert_eq!(found(&files), [["a", "b::inner"]]);
    }

    #[test]
    fn parent_and_child_are_apart_and_tests_do_not_count() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod inner; pub struct A(inner::B);"),
            ("a/inner.rs", "pub struct B(super::A);"),
            (
                "b.rs",
                "pub struct B; #[cfg(test)] mod tests { use crate::a::A; } #[cfg(test)] use crate::a::A;",
            ),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lib.rs"), "mod missing;").unwrap();
        let why = Crate::read(dir.path()).err().unwrap();
        assert!(why.contains("missing"), "{why}");
    }
}
