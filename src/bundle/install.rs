//! Writes a bundle beside its place and installs it whole.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST, Manifest};
use super::verify;
use crate::error::{Code, Error, Result};
use crate::files::check_room;

/// A folder in which a bundle grows; dropped before [`Staging::install`], it goes away.
pub struct Staging {
    target: PathBuf,
    folder: Staged,
    /// Files of the target that are not the old bundle's and stay.
    kept: Vec<OsString>,
}

impl Staging {
    /// A new folder beside `target`. An old bundle there will be replaced, other files kept; a folder that holds
    /// other files but no bundle is refused without `force`.
    ///
    /// # Errors
    /// `output.exists`, or `io` when the folder cannot be made.
    pub fn new(target: &Path, force: bool) -> Result<Self> {
        let kept = foreign_files(target, force)?;
        // A link to a folder stays a link: what it points to is replaced.
        let absolute = if target.exists() { fs::canonicalize(target) } else { std::path::absolute(target) };
        let absolute = absolute.map_err(|e| Error::io(target, "cannot find the folder", e))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            let message = "the output must be a folder with a name: choose another -o";
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(target));
        };
        let folder = Staged::new(parent, &name.to_string_lossy())?;
        Ok(Self { target: absolute.clone(), folder, kept })
    }

    /// Where to write the bundle's files.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes `bundle.json`, checks that the bundle is whole, and puts it into place in one step.
    ///
    /// The hashes of large files are those of the bytes as they were written: to read gigabytes again from the page cache
    /// would find nothing that readers do not find, who hash every file that they use.
    ///
    /// # Errors
    /// `bundle.*` when a file is missing or of another size than the manifest says; `io` when the folder cannot be put into
    /// place; the old one then stays.
    pub fn install(self, manifest: &Manifest) -> Result<()> {
        let path = self.path().join(MANIFEST);
        fs::write(&path, manifest.to_bytes()?).map_err(|e| Error::io(&path, "cannot write", e))?;
        self.install_as_it_is()
    }

    /// Takes over a file of another bundle, which is not read: a second name of the same bytes, or a copy where the file system
    /// has no such names.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn take_over(&self, dir: &Path, name: &str) -> Result<()> {
        let (from, to) = (dir.join(name), self.path().join(name));
        if fs::hard_link(&from, &to).is_ok() {
            return Ok(());
        }
        let failed = |e| Error::io(&from, "cannot copy the file", e);
        let bytes = fs::symlink_metadata(&from).map_err(failed)?.len();
        check_room(self.path(), bytes, "a copy of the bundle's weights")?;
        fs::copy(&from, &to).map_err(failed)?;
        sync(&to)
    }

    /// As [`Self::install`], with the `bundle.json` that is there.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_as_it_is(self) -> Result<()> {
        let (manifest, _) = verify::manifest(&self.path().join(MANIFEST))?;
        check(self.path(), &manifest)?;
        for name in &self.kept {
            let (from, to) = (self.target.join(name), self.path().join(name));
            // `--force` over files of a bundle's own names: a kept one would break the bundle just checked.
            if to.exists() {
                continue;
            }
            fs::copy(&from, &to).map_err(|e| Error::io(from, "cannot keep the file", e))?;
        }
        self.folder.put(&self.target)
    }
}

/// A folder that grows beside its place, for its maker alone.
pub(crate) struct Staged {
    folder: Temporary,
    /// Held while the folder is in use, so that others can tell it from one that an interrupted program left.
    _lock: Option<fs::File>,
}

impl Staged {
    /// A new folder in `parent`, for what will be called `name`. What killed programs left of that name goes.
    ///
    /// # Errors
    /// `io` when it cannot be made.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot make the folder", e))?;
        let prefix = format!(".{name}.partial-");
        remove_abandoned(parent, &prefix);
        let (folder, lock) = locked_folder(parent, &prefix)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where to write files.
    pub fn path(&self) -> &Path {
        &self.folder.0
    }

    /// Puts the folder into its place in one step; what was there goes.
    ///
    /// # Errors
    /// `io`; what was there then stays.
    pub fn put(self, target: &Path) -> Result<()> {
        readable_by_all(self.path())?;
        sync(self.path())?;
        swap(self.path(), target)?;
        target.parent().map_or(Ok(()), sync)
    }
}

/// The staged files: there, of the sizes that the manifest says, and all that the graphs refer to. Small ones are read
/// again, and are on the disk afterwards; large ones were put there by who wrote them.
fn check(folder: &Path, manifest: &Manifest) -> Result<()> {
    verify::small_files(folder, manifest)?;
    let small = manifest.files.iter().filter(|file| file.bytes <= verify::LARGE_BYTES);
    small.map(|file| folder.join(&file.name)).try_for_each(|path| sync(&path))?;
    sync(&folder.join(MANIFEST))
}

/// Makes sure that a file, or the names in a folder, are on the disk: a power loss must not leave a bundle in its place
/// whose bytes never came.
fn sync(path: &Path) -> Result<()> {
    // Folders cannot be opened everywhere, nor does every file system want them synchronised.
    match fs::File::open(path) {
        Ok(file) if path.is_dir() => drop(file.sync_all()),
        Ok(file) => file.sync_all().map_err(|e| Error::io(path, "cannot write", e))?,
        Err(_) if path.is_dir() => {}
        Err(e) => return Err(Error::io(path, "cannot open the file", e)),
    }
    Ok(())
}

/// A folder that goes away when it is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Installed, it is gone (or is the old bundle); there is nobody to tell of a failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a folder's name ends in before it is locked.
const UNLOCKED: &str = ".new";

/// Makes a folder of that prefix and locks it. It gets its name only once it is locked, so that whoever sees the name and
/// gets the lock knows that its maker is gone.
fn locked_folder(parent: &Path, prefix: &str) -> Result<(Temporary, Option<fs::File>)> {
    const ATTEMPTS: usize = 16;
    let failed = |e: std::io::Error| Error::io(parent, "cannot make a temporary folder", e);
    let mut outcome = Err(std::io::ErrorKind::NotFound.into());
    for _ in 0..ATTEMPTS {
        let made = tempfile::Builder::new().prefix(prefix).suffix(UNLOCKED).tempdir_in(parent).map_err(failed)?;
        let lock = fs::File::open(made.path()).ok().filter(|f| f.try_lock().is_ok());
        let folder = made.path().with_extension("");
        // Another export may have taken the empty folder for an abandoned one.
        outcome = fs::rename(made.path(), &folder);
        if outcome.is_ok() {
            return Ok((Temporary(folder), lock));
        }
    }
    Err(failed(outcome.err().unwrap_or_else(|| std::io::ErrorKind::Other.into())))
}

/// Removes what killed exports left: for a 7-billion parameter model it is tens of gigabytes, which the next export needs.
/// A failure to do so is no reason not to export.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if !name.starts_with(prefix) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if name.ends_with(UNLOCKED) {
            // Nothing is written under this name: only an empty folder goes, and its maker, if he lives, makes another.
            let _ = fs::remove_dir(&path);
        } else if let Ok(folder) = fs::File::open(&path)
            && folder.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Puts the folder `new` where `target` is. What `target` was is at `new` afterwards, where there was one, and goes
/// away with the temporary folder.
fn swap(new: &Path, target: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(target, "cannot put the bundle into place", e);
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

/// A temporary folder is its maker's alone; a bundle is meant to be read.
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

/// The files in `target` that an old bundle there does not list.
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
                "the output folder holds `{text}`, which is no file of a bundle: choose another -o"
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn folders_that_nobody_holds_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, file: bool| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            if file {
                fs::write(path.join("text.onnx.data"), b"half").unwrap();
            }
            fs::File::open(&path).unwrap()
        };
        make(".onnx.partial-dead", true);
        make(".onnx.partial-dead.new", false);
        make(".onnx.partial-full.new", true);
        make(".other.partial-dead", true);
        let held = make(".onnx.partial-held", true);
        held.try_lock().unwrap();
        fs::write(dir.path().join(".onnx.partial-file"), b"no folder").unwrap();
        remove_abandoned(dir.path(), ".onnx.partial-");
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let expected = [".onnx.partial-file", ".onnx.partial-full.new", ".onnx.partial-held", ".other.partial-dead"];
        assert_eq!(left, expected);
    }

    /// Many exports at once, each of which looks for abandoned folders: none takes another's.
    #[test]
    fn exports_side_by_side_leave_each_other_alone() {
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
