//! The operations on objects as files: create, replace, link, read, delete.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path as FsPath, PathBuf};

use object_store::path::Path;
use object_store::{Error, ObjectMeta, PutMode, PutResult, Result};
use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::scratch::{self, TempFile};
use super::tree::{Entry, Tree, look, open_object};
use super::walk::is_absent;
use super::{STORE, failed};

/// Objects of up to this many bytes have an ETag and can be updated conditionally.
///
/// The ETag is the xxh3-128 of the content, computed for each request. Times and inode numbers would not be
/// sufficient: a file that is replaced twice within one tick of the clock can get the inode of the first
/// one again, with the same time and size. Objects that are swapped are small. Data files are never
/// updated, and hashing them for each HEAD would mean reading them.
pub const TAGGED: u64 = 16 * 1024 * 1024;
// Every root of an allowed size can be swapped.
const _: () = assert!(TAGGED >= crate::root::ROOT_BYTES);

/// A directory can be removed as empty while an object is put into it; it is created again up to this many
/// times.
const PARENT_ATTEMPTS: usize = 100;

/// The objects of one directory.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) tree: Tree,
    pub(super) hard_links: bool,
}

/// Splits a key into its directories and the name in the last of them.
pub(super) fn split(location: &Path) -> Result<(Vec<&str>, &str)> {
    let mut segments: Vec<&str> = location.as_ref().split('/').collect();
    let odd = segments
        .iter()
        .any(|s| matches!(*s, "" | "." | "..") || s.contains('\0'));
    match segments.pop() {
        Some(name) if !odd && segments.first().unwrap_or(&name) != &scratch::DIR => {
            Ok((segments, name))
        }
        _ => Err(Error::NotSupported {
            source: format!("{location:?} cannot be the key of an object in a directory").into(),
        }),
    }
}

impl Objects {
    /// The path of an object's file, for messages.
    pub(super) fn path(&self, location: &Path) -> PathBuf {
        self.tree.root().join(location.as_ref())
    }

    /// Syncs a temporary file and makes it an object, if the existing one satisfies `mode`.
    pub(super) fn publish(
        &self,
        mut temp: TempFile,
        location: &Path,
        mode: &PutMode,
    ) -> Result<PutResult> {
        let (parents, name) = split(location)?;
        let fail = |what| failed(what, self.path(location));
        temp.file.sync_all().map_err(fail("sync"))?;
        let e_tag = tag(&temp.file).map_err(fail("read back"))?;
        let _lock = scratch::lock(&self.tree, location.as_ref()).map_err(fail("lock"))?;
        for _ in 0..PARENT_ATTEMPTS {
            let dir = match self.tree.make(parents.iter().copied()) {
                // A directory of the path was removed as empty while the next one was created in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                made => made.map_err(fail("make the directory of"))?,
            };
            self.check(&dir, name, location, mode)?;
            let placed = match mode {
                PutMode::Create => place_new(&mut temp, &dir, name),
                PutMode::Overwrite | PutMode::Update(_) => place(&mut temp, &dir, name),
            };
            match placed {
                Ok(()) => {
                    dir.sync_all().map_err(fail("sync the directory of"))?;
                    return Ok(PutResult {
                        e_tag,
                        version: None,
                        extensions: Default::default(),
                    });
                }
                // The directory was removed as empty meanwhile.
                Err(Errno::NOENT) => {}
                Err(Errno::EXIST) => return Err(self.exists(location)),
                Err(error) => return Err(fail("rename into")(error.into())),
            }
        }
        Err(fail("keep the directory of")(
            io::ErrorKind::NotFound.into(),
        ))
    }

    /// Checks whether the existing entry allows this put. The caller holds the key's lock.
    fn check(&self, dir: &File, name: &str, location: &Path, mode: &PutMode) -> Result<()> {
        let fail = |what| failed(what, self.path(location));
        match (look(dir, name).map_err(fail("look at"))?, mode) {
            (Entry::Absent, PutMode::Overwrite | PutMode::Create) => Ok(()),
            (_, PutMode::Create) => Err(self.exists(location)),
            (Entry::Object { .. }, PutMode::Overwrite) => Ok(()),
            (Entry::Other, PutMode::Overwrite | PutMode::Update(_)) => Err(Error::Generic {
                store: STORE,
                source: format!("{location} is no regular file and is left alone").into(),
            }),
            (Entry::Absent, PutMode::Update(_)) => Err(unmet(location, "there is no such object")),
            (Entry::Object { size, .. }, PutMode::Update(expected)) => {
                if size > TAGGED {
                    return Err(Error::NotSupported {
                        source: format!(
                            "{location} has {size} bytes; up to {TAGGED} can be updated conditionally"
                        )
                        .into(),
                    });
                }
                let file = open_object(dir, name).map_err(fail("read"))?;
                let found = file.map(|file| tag(&file)).transpose();
                let found = found.map_err(fail("read"))?.flatten();
                if found == expected.e_tag && found.is_some() {
                    Ok(())
                } else {
                    Err(unmet(location, "its ETag is another"))
                }
            }
        }
    }

    fn exists(&self, location: &Path) -> Error {
        Error::AlreadyExists {
            path: location.to_string(),
            source: format!("{} is there", self.path(location).display()).into(),
        }
    }

    pub(super) fn link(&self, location: &Path, source: &FsPath) -> io::Result<bool> {
        let (parents, name) = split(location).map_err(io::Error::other)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(source, flags, rustix::fs::Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(false);
        }
        file.sync_all()?;
        let _lock = scratch::lock(&self.tree, location.as_ref())?;
        for _ in 0..PARENT_ATTEMPTS {
            let dir = match self.tree.make(parents.iter().copied()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                made => made?,
            };
            match rustix::fs::linkat(rustix::fs::CWD, source, &dir, name, AtFlags::empty()) {
                Ok(()) => {
                    dir.sync_all()?;
                    return Ok(true);
                }
                Err(Errno::EXIST) => {
                    let there = open_object(&dir, name)?.map(|there| there.metadata());
                    let same = there.transpose()?.is_some_and(|there| {
                        (there.dev(), there.ino()) == (meta.dev(), meta.ino())
                    });
                    if same {
                        dir.sync_all()?;
                        return Ok(true);
                    }
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                // The directory was removed as empty meanwhile, unless the source is what is missing.
                Err(Errno::NOENT) if source.exists() => {}
                Err(error) if cannot_link(error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    pub(super) fn delete(&self, location: &Path) -> Result<()> {
        let (parents, name) = split(location)?;
        let fail = |what| failed(what, self.path(location));
        let dir = match self.tree.open(parents.iter().copied()) {
            Err(error) if is_absent(&error) => return Ok(()),
            opened => opened.map_err(fail("open the directory of"))?,
        };
        if !matches!(
            look(&dir, name).map_err(fail("look at"))?,
            Entry::Object { .. }
        ) {
            return Ok(());
        }
        {
            // The lock excludes a delete between the check of an update and its rename.
            let _lock = scratch::lock(&self.tree, location.as_ref()).map_err(fail("lock"))?;
            match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(fail("delete")(error.into())),
            }
        }
        // The directory is not synced: a power failure may restore a deleted object, as if it had not been
        // deleted yet.
        self.tree.prune(&parents);
        Ok(())
    }

    pub(super) fn get(&self, location: &Path) -> Result<(File, ObjectMeta)> {
        let (parents, name) = split(location)?;
        let fail = |what| failed(what, self.path(location));
        let file = match self.tree.open(parents.into_iter()) {
            Ok(dir) => open_object(&dir, name).map_err(fail("open"))?,
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(fail("open the directory of")(error)),
        };
        let file = file.ok_or_else(|| fail("open")(io::ErrorKind::NotFound.into()))?;
        let meta = file.metadata().map_err(fail("look at"))?;
        let modified = meta.modified().map_err(fail("look at"))?;
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: modified.into(),
            size: meta.len(),
            e_tag: tag(&file).map_err(fail("read"))?,
            version: None,
        };
        Ok((file, meta))
    }
}

fn unmet(location: &Path, why: &str) -> Error {
    Error::Precondition {
        path: location.to_string(),
        source: why.into(),
    }
}

/// The ETag of a file's content; none if the file is larger than [`TAGGED`].
fn tag(file: &File) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    if size > TAGGED {
        return Ok(None);
    }
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 64 * 1024)).unwrap_or(1)];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Some(format!("{:032x}", hash.digest128()))),
            Ok(read) => {
                hash.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Renames a file into place and replaces an existing one.
fn place(temp: &mut TempFile, dir: &File, name: &str) -> rustix::io::Result<()> {
    rustix::fs::renameat(&temp.dir, &temp.name, dir, name)?;
    temp.renamed = true;
    Ok(())
}

/// Moves a file to a name that is free, without replacing a file that another program creates there
/// meanwhile.
fn place_new(temp: &mut TempFile, dir: &File, name: &str) -> rustix::io::Result<()> {
    let flags = RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(&temp.dir, &temp.name, dir, name, flags) {
        Ok(()) => {
            temp.renamed = true;
            Ok(())
        }
        // The file system does not support that (NFS). A hard link never replaces a file either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match rustix::fs::linkat(&temp.dir, &temp.name, dir, name, AtFlags::empty()) {
                // Hard links are not supported either. The name was free when it was checked under the
                // lock.
                Err(error) if cannot_link(error) => place(temp, dir, name),
                linked => linked,
            }
        }
        Err(error) => Err(error),
    }
}

fn cannot_link(error: Errno) -> bool {
    matches!(
        error,
        Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS
    )
}
