//! Folders and files that belong to the current user alone: caches.
//!
//! A cache is believed: features in it become answers, records in it say that weights were verified. So its folders
//! must be the user's own, and nobody else may write to them. Where the system has no owners and modes (Windows),
//! nothing is checked.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// The folder that the user named for a cache; made for the user alone where there is none. A link to a folder is
/// followed.
///
/// # Errors
/// `cache.unsafe` when others own it or can write to it; `io` when it cannot be made.
pub fn cache_folder(path: &Path) -> Result<()> {
    make(path)?;
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot open the folder", e))?;
    check(path, &meta)
}

/// The folder `name` in the cache `cache`, made where there is none; what others could read of it is closed to them.
///
/// # Errors
/// As [`cache_folder`]; also when it is a link.
pub fn folder_in(cache: &Path, name: &str) -> Result<PathBuf> {
    cache_folder(cache)?;
    let path = cache.join(name);
    make(&path)?;
    own_folder(&path)?;
    Ok(path)
}

/// Checks a folder inside a cache, and closes it to others.
///
/// # Errors
/// As [`folder_in`]; `io` when there is none.
pub fn own_folder(path: &Path) -> Result<()> {
    let meta = std::fs::symlink_metadata(path).map_err(|e| Error::io(path, "cannot open the folder", e))?;
    if !meta.is_dir() {
        return Err(refused(path, "is a link or a file, expected a folder", "remove it"));
    }
    check(path, &meta)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if meta.permissions().mode() & 0o077 != 0 {
            let closed = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700));
            closed.map_err(|e| Error::io(path, "cannot set permissions", e))?;
        }
    }
    Ok(())
}

/// Closes a file in a cache to others, also where another library wrote it under the umask.
///
/// # Errors
/// `io`.
pub fn close_file(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| Error::io(path, "cannot set permissions", e))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// The bytes of a file in a cache, of at most `limit`; none where there is none, or one that is not to be believed: a
/// link, another user's, one that others can write to.
pub fn read(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Opening a pipe must not wait.
        options.custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed());
    }
    let file = options.open(path).ok()?;
    let meta = file.metadata().ok().filter(|m| m.is_file() && m.len() <= limit)?;
    check(path, &meta).ok()?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).ok()?);
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Makes a folder, and those above it, for the user alone.
fn make(path: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| Error::io(path, "cannot make the folder", e))
}

/// Refuses what others own or can write to.
#[cfg(unix)]
fn check(path: &Path, meta: &Metadata) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (owner, user) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        let what = format!("belongs to user {owner}, not to user {user}");
        return Err(refused(path, &what, "name a folder of your own"));
    }
    let mode = meta.permissions().mode();
    if mode & 0o022 != 0 {
        let what = format!("can be written by others (mode {:03o})", mode & 0o777);
        return Err(refused(path, &what, "chmod go-w, or name a folder of your own"));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check(_: &Path, _: &Metadata) -> Result<()> {
    Ok(())
}

fn refused(path: &Path, what: &str, remedy: &str) -> Error {
    Error::new(Code::CACHE_UNSAFE, format!("the cache {what}, and what is in it becomes results: {remedy}")).at(path)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn code(result: Result<PathBuf>) -> Code {
        result.unwrap_err().code()
    }

    #[test]
    fn folders_are_closed_and_foreign_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("new/cache");
        let inner = folder_in(&cache, "features").unwrap();
        assert_eq!((mode(&cache), mode(&inner)), (0o700, 0o700));
        // An older version left it readable.
        set(&inner, 0o755);
        folder_in(&cache, "features").unwrap();
        assert_eq!(mode(&inner), 0o700);
        // The user's own folder stays as it is, unless others can write to it.
        set(&cache, 0o755);
        folder_in(&cache, "features").unwrap();
        assert_eq!(mode(&cache), 0o755);
        for open in [0o775, 0o757, 0o777, 0o1777] {
            set(&cache, open);
            assert_eq!(code(folder_in(&cache, "features")), Code::CACHE_UNSAFE, "{open:o}");
            set(&cache, 0o700);
            set(&inner, open);
            assert_eq!(code(folder_in(&cache, "features")), Code::CACHE_UNSAFE, "{open:o}");
            set(&inner, 0o700);
        }
        // A link inside is refused; one to the whole folder is the user's choice.
        symlink(&inner, cache.join("verified")).unwrap();
        assert_eq!(code(folder_in(&cache, "verified")), Code::CACHE_UNSAFE);
        std::fs::write(cache.join("engines"), "").unwrap();
        assert!(folder_in(&cache, "engines").is_err());
        let link = dir.path().join("link");
        symlink(&cache, &link).unwrap();
        folder_in(&link, "features").unwrap();
    }

    #[test]
    fn files_of_others_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        close_file(&path).unwrap();
        assert_eq!((read(&path, 3), mode(&path)), (Some(b"abc".to_vec()), 0o600));
        assert_eq!(read(&path, 2), None);
        set(&path, 0o622);
        assert_eq!(read(&path, 3), None);
        set(&path, 0o600);
        symlink(&path, dir.path().join("l")).unwrap();
        assert_eq!(read(&dir.path().join("l"), 3), None);
        assert_eq!(read(dir.path(), 3), None);
        // As root only: anybody else cannot give a file away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert_eq!(read(&path, 3), None);
            let foreign = dir.path().join("foreign");
            folder_in(&foreign, "features").unwrap();
            std::os::unix::fs::chown(foreign.join("features"), Some(12345), None).unwrap();
            assert_eq!(code(folder_in(&foreign, "features")), Code::CACHE_UNSAFE);
            std::os::unix::fs::chown(&foreign, Some(12345), None).unwrap();
            assert_eq!(cache_folder(&foreign).unwrap_err().code(), Code::CACHE_UNSAFE);
        }
    }
}
