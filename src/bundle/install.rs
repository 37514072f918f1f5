//! Writes a bundle next to its place and installs it atomically.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST, Manifest};
use super::{names, verify};
use crate::error::{Code, Error, Result};
use crate::files::{TemporaryFolder, check_free_space, copy_regular, undisturbed};

/// A folder in which a bundle is written; deleted if it is dropped before [`Staging::install`].
pub struct Staging {
    target: PathBuf,
    folder: Staged,
    /// Files in the target that do not belong to the old bundle and are kept.
    kept: Vec<OsString>,
}

impl Staging {
    /// A new folder next to `target`. An old bundle there will be replaced, other files kept; a folder that holds other
    /// files but no bundle is refused without `force`.
    ///
    /// # Errors
    /// `output.exists`, or `io` when the folder cannot be made.
    pub fn new(target: &Path, force: bool) -> Result<Self> {
        let kept = foreign_files(target, force)?;
        refuse_place(target)?;
        // A link to a folder stays a link: its target is replaced.
        let absolute = if target.exists() { fs::canonicalize(target) } else { std::path::absolute(target) };
        let absolute = absolute.map_err(|e| Error::io(target, "cannot find the folder", e))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            let message = "the output's path must end in a folder name: choose another -o";
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(target));
        };
        let folder = Staged::new(parent, &name.to_string_lossy())?;
        Ok(Self { target: absolute.clone(), folder, kept })
    }

    /// The folder to write the bundle's files into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes `bundle.json`, checks that the bundle is complete, and installs it atomically.
    ///
    /// The hashes of large files were computed while they were written: reading gigabytes again from the page cache
    /// would find nothing that readers do not find, since these hash every file that they use.
    ///
    /// # Errors
    /// `bundle.*` when a file is missing or its size differs from the manifest's; `io` when the folder cannot be
    /// installed; the old one then stays.
    pub fn install(self, manifest: &Manifest) -> Result<()> {
        let path = self.path().join(MANIFEST);
        fs::write(&path, manifest.to_bytes()?).map_err(|e| Error::io(&path, "cannot write", e))?;
        self.install_as_it_is()
    }

    /// Adds a file of another bundle without reading it: as a hard link, or as a copy if the file system has no hard
    /// links.
    ///
    /// # Errors
    /// `bundle.path` when `name` is not a plain file name, or the file is a link; `io` or `disk.full`.
    pub fn take_over(&self, dir: &Path, name: &str) -> Result<()> {
        let (from, to) = (names::join_existing(dir, name)?, names::join(self.path(), name)?);
        if fs::hard_link(&from, &to).is_ok() {
            // A link that has taken the file's place since then was linked itself, and not what it leads to.
            return names::join_existing(self.path(), name).map(drop);
        }
        let failed = |e| Error::io(&from, "cannot copy the file", e);
        let bytes = fs::symlink_metadata(&from).map_err(failed)?.len();
        check_free_space(self.path(), bytes, "a copy of the bundle's weights")?;
        copy_regular(&from, &to).map_err(failed)?;
        sync(&to)
    }

    /// As [`Self::install`], with the `bundle.json` that the folder already holds.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_as_it_is(self) -> Result<()> {
        let (manifest, _) = verify::read_manifest(&self.path().join(MANIFEST))?;
        check(self.path(), &manifest)?;
        for name in &self.kept {
            let (from, to) = (self.target.join(name), self.path().join(name));
            // `--force` over files with a bundle's own names: keeping one would break the bundle that was just checked.
            if to.exists() {
                continue;
            }
            copy_regular(&from, &to).map_err(|e| Error::io(from, "cannot keep the file", e))?;
        }
        self.folder.install(&self.target)
    }
}

/// A temporary folder next to its final place, private to the program that writes it.
pub(crate) struct Staged {
    folder: TemporaryFolder,
}

impl Staged {
    /// A new folder in `parent` for the final name `name`. What killed programs left in `parent` is deleted.
    ///
    /// # Errors
    /// `io` when it cannot be created.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot create the folder", e))?;
        Ok(Self { folder: TemporaryFolder::new(parent, name)? })
    }

    /// The folder to write files into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Moves the folder to its final place atomically and deletes what was there.
    ///
    /// # Errors
    /// `io`; what was there then stays.
    pub fn install(self, target: &Path) -> Result<()> {
        readable_by_all(self.path())?;
        sync(self.path())?;
        undisturbed(|| swap(self.path(), target))?;
        target.parent().map_or(Ok(()), sync)
    }
}

/// Checks that the staged files exist with the manifest's sizes, including those that the graphs refer to. Small files
/// are read again and synchronized to the disk; large ones were synchronized by whoever wrote them.
fn check(folder: &Path, manifest: &Manifest) -> Result<()> {
    verify::small_files(folder, manifest)?;
    let small = manifest.files.iter().filter(|file| file.bytes <= verify::LARGE_BYTES);
    small.map(|file| names::join(folder, &file.name)).try_for_each(|path| sync(&path?))?;
    sync(&folder.join(MANIFEST))
}

/// Synchronizes a file, or the names in a folder, to the disk: a power loss must not leave an installed bundle without
/// its bytes.
fn sync(path: &Path) -> Result<()> {
    // Not every system can open folders, and not every file system can synchronize them.
    match fs::File::open(path) {
        Ok(file) if path.is_dir() => drop(file.sync_all()),
        Ok(file) => file.sync_all().map_err(|e| Error::io(path, "cannot write", e))?,
        Err(_) if path.is_dir() => {}
        Err(e) => return Err(Error::io(path, "cannot open the file", e)),
    }
    Ok(())
}

/// Moves the folder `new` to `target`. A previous `target` is at `new` afterwards and is deleted with the temporary
/// folder.
fn swap(new: &Path, target: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(target, "cannot install the bundle", e);
    if !target.exists() {
        return fs::rename(new, target).map_err(failed);
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            // Not every file system can exchange two folders.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    let old = new.with_extension("old");
    fs::rename(target, &old).map_err(failed)?;
    if let Err(e) = fs::rename(new, target) {
        fs::rename(&old, target).map_err(failed)?;
        return Err(failed(e));
    }
    fs::rename(&old, new).map_err(failed)
}

/// Temporary folders are private; a bundle is meant to be read by all users.
fn readable_by_all(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
            .map_err(|e| Error::io(folder, "cannot set permissions", e))?;
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Refuses places that installing would take away under somebody: the folder that the program was started in, or one
/// above, and a link that leads nowhere.
fn refuse_place(target: &Path) -> Result<()> {
    let refuse = |message: &str| Err(Error::new(Code::OUTPUT_EXISTS, message).at(target));
    if !target.exists() && target.symlink_metadata().is_ok() {
        return refuse("the output is a link that leads to no folder: remove the link, or choose another -o");
    }
    let here = std::env::current_dir().and_then(fs::canonicalize);
    if fs::canonicalize(target).is_ok_and(|target| here.is_ok_and(|here| here.starts_with(target))) {
        return refuse(
            "the output is the current folder, or one above, which is replaced as a whole: name a folder in it",
        );
    }
    Ok(())
}

/// The files in `target` that do not belong to an old bundle there.
fn foreign_files(target: &Path, force: bool) -> Result<Vec<OsString>> {
    let entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(target, "cannot use the output folder", e)),
    };
    let refuse = |message: String| Err(Error::new(Code::OUTPUT_EXISTS, message).at(target));
    let old = verify::listed_files(&target.join(MANIFEST));
    let mut kept = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(target, "cannot read the folder", e))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let listed = old.as_ref().is_some_and(|names| text == MANIFEST || names.iter().any(|n| *n == text));
        let kind = entry.file_type().map_err(|e| Error::io(target, "cannot read the folder", e))?;
        if listed && !kind.is_dir() {
            continue;
        }
        if !kind.is_file() {
            return refuse(format!(
                "the output folder holds `{text}`, which is not a file of a bundle: choose another -o"
            ));
        }
        let harmless = text.starts_with('.') || text.starts_with("README");
        if old.is_none() && !harmless && !force {
            return refuse(format!(
                "the folder holds `{text}` and no bundle: choose another -o, or keep it with --force"
            ));
        }
        kept.push(name);
    }
    Ok(kept)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    /// Many exports at once, each of which searches for abandoned folders: none deletes another's.
    #[test]
    fn concurrent_exports_do_not_interfere() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let staging = Staging::new(&dir.path().join("onnx"), false).unwrap();
                        let file = staging.path().join("text.onnx.data");
                        fs::write(&file, b"ours").unwrap();
                        std::thread::yield_now();
                        assert_eq!(fs::read(file).unwrap(), b"ours");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
