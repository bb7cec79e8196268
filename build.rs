//! Options of the linker: what makes the binary smaller, and what makes it need the C library alone.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Folds functions of equal code into one.
const FOLD: &str = "-Wl,--icf=all";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    if !target.ends_with("linux-gnu") {
        return;
    }
    // Ends of strings are shared.
    println!("cargo:rustc-link-arg-bins=-Wl,-O2");
    if std::env::var("HOST").as_deref() != Ok(&target) {
        return;
    }
    // Functions of equal code are one. A backtrace may then name another instance of a generic function. No
    // code may depend on different addresses of functions; those of data stay different.
    if folds_functions(&target) {
        println!("cargo:rustc-link-arg-bins={FOLD}");
    }
    // Relocations take a tenth of the space (1.6 MB less) in a form that the loader knows since glibc 2.36.
    if glibc().is_some_and(|v| v >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if let Some(directory) = static_libraries() {
        println!("cargo:rustc-link-search=native={}", directory.display());
    }
}

/// Whether the linker folds functions of equal code. LLVM's does, which the compiler brings for some targets;
/// GNU's fails at the option.
fn folds_functions(target: &str) -> bool {
    let variable = |name| std::env::var_os(name);
    let (Some(rustc), Some(directory)) = (variable("RUSTC"), variable("OUT_DIR")) else {
        return false;
    };
    let source = Path::new(&directory).join("nothing.rs");
    if std::fs::write(&source, "fn main() {}\n").is_err() {
        return false;
    }
    let mut link = Command::new(rustc);
    link.arg("--target").arg(target);
    link.arg("--out-dir").arg(directory).arg(source);
    if let Some(linker) = variable("RUSTC_LINKER") {
        link.arg("-C");
        link.arg(format!("linker={}", linker.to_string_lossy()));
    }
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    link.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    link.arg("-C").arg(format!("link-arg={FOLD}"));
    link.output().is_ok_and(|output| output.status.success())
}

/// A directory with the static libraries of the C++ compiler, and no shared ones. The linker looks there
/// first, so the binary contains them. Without them, shared ones are linked, and `scripts/dist` refuses the
/// result.
fn static_libraries() -> Option<PathBuf> {
    let directory = Path::new(&std::env::var_os("OUT_DIR")?).join("static");
    std::fs::create_dir_all(&directory).ok()?;
    // `libgcc_eh` is the static form of `libgcc_s`.
    for (name, wanted) in [
        ("libstdc++.a", "libstdc++.a"),
        ("libgcc_eh.a", "libgcc_s.a"),
    ] {
        let found = library(name)?;
        let link = directory.join(wanted);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(found, link).ok()?;
    }
    Some(directory)
}

/// Where the compiler has a library.
fn library(name: &str) -> Option<PathBuf> {
    let output = Command::new("cc")
        .arg(format!("-print-file-name={name}"))
        .output();
    let path = PathBuf::from(String::from_utf8(output.ok()?.stdout).ok()?.trim());
    // The name alone is the answer if there is none.
    path.is_absolute().then_some(path)
}

/// The version of this machine's C library.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
