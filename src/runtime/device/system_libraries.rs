//! Where the system has a shared library, as an absolute path.
//!
//! The dynamic loader takes an empty or relative entry of `LD_LIBRARY_PATH` (a stray `:` is enough) as the current
//! folder, and loads what lies there. So nothing is asked of it by name: a library is searched for here, in the
//! loader's own order but in absolute folders alone, and loaded by its path.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The loader's list of the libraries in the system's folders.
const CACHE: &str = "/etc/ld.so.cache";
/// The folders that the loader knows without any configuration, and those of containers with NVIDIA's driver.
const FOLDERS: [&str; 8] = [
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
];

/// The library of that file name; none where the system has none, and on other systems than Linux.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let variable = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let named = folders(&variable).map(|folder| folder.join(name));
    let cached = cached(&std::fs::read(CACHE).unwrap_or_default(), name);
    let usual = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    let own = Machine::of("/proc/self/exe".as_ref());
    named.chain(cached).chain(usual).find(|path| path.is_file() && suits(own, Machine::of(path)))
}

/// The absolute folders of a variable such as `LD_LIBRARY_PATH`, whose entries end in `:` or `;`.
fn folders(variable: &OsStr) -> impl Iterator<Item = PathBuf> {
    let text = variable.to_string_lossy().into_owned();
    let all: Vec<PathBuf> = text.split([':', ';']).map(PathBuf::from).filter(|folder| folder.is_absolute()).collect();
    all.into_iter()
}

/// Word size and processor of a library.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Machine(u8, [u8; 2]);

impl Machine {
    /// None of a file that is no library: loading it says so.
    fn of(path: &Path) -> Option<Self> {
        let mut header = [0; 20];
        std::fs::File::open(path).ok()?.read_exact(&mut header).ok()?;
        header.starts_with(b"\x7fELF").then_some(Self(header[4], [header[18], header[19]]))
    }
}

/// Whether a library is for this program's machine: the loader passes over others.
fn suits(own: Option<Machine>, library: Option<Machine>) -> bool {
    own.is_none() || library.is_none() || own == library
}

/// The paths of a library in the loader's cache, of all machines. The format is that of glibc 2.2 and later,
/// `struct cache_file_new`: a header of 48 bytes, entries of 24 (flags, name, path, version, features), strings.
fn cached(cache: &[u8], name: &str) -> Vec<PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    // Older systems put it behind another table.
    let Some(start) = cache.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) else { return Vec::new() };
    let cache = &cache[start..];
    let number = |at: usize| {
        let bytes = cache.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
    };
    let string = |at: usize| {
        let bytes = cache.get(at..)?;
        let text = std::str::from_utf8(bytes.get(..bytes.iter().position(|b| *b == 0)?)?).ok();
        text.map(str::to_owned)
    };
    let entries = cache.get(48..).unwrap_or_default().len() / 24;
    let entry = |i: usize| {
        let at = 48 + i * 24;
        let path = (string(number(at + 4)?)? == name).then(|| number(at + 8).and_then(string)).flatten()?;
        Some(PathBuf::from(path)).filter(|path| path.is_absolute())
    };
    (0..number(20).unwrap_or(0).min(entries)).filter_map(entry).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn empty_and_relative_entries_are_no_folders() {
        let found = |text: &str| folders(text.as_ref()).collect::<Vec<_>>();
        let expected = ["/a", "/b"].map(PathBuf::from);
        for text in ["/a:/b", ":/a:/b", "/a::/b:", "/a;/b", "lib:/a:.:/b:../c", "$ORIGIN:/a:/b"] {
            assert_eq!(found(text), expected, "{text}");
        }
        assert!(found("").is_empty());
    }

    /// A cache of one library.
    fn cache_of(name: &str, path: &str) -> Vec<u8> {
        let mut cache = b"glibc-ld.so.cache1.1".to_vec();
        let strings = [name, "\0", path, "\0"].concat();
        let (name_at, path_at) = (48 + 24, 48 + 24 + name.len() as u32 + 1);
        for number in [1, strings.len() as u32, 0, 0, 0, 0, 0, 0x303, name_at, path_at, 0, 0, 0] {
            cache.extend(number.to_ne_bytes());
        }
        cache.extend(strings.as_bytes());
        cache
    }

    #[test]
    fn the_loaders_cache() {
        let cache = cache_of("libx.so.1", "/opt/x/libx.so.1");
        assert_eq!(cached(&cache, "libx.so.1"), [PathBuf::from("/opt/x/libx.so.1")]);
        assert!(cached(&cache, "libx.so").is_empty());
        assert!(cached(&cache_of("libx.so.1", "x/libx.so.1"), "libx.so.1").is_empty(), "a relative path");
        for end in 0..cache.len() - 1 {
            assert!(cached(&cache[..end], "libx.so.1").is_empty(), "cut at {end}");
        }
        for (at, byte) in (0..cache.len()).flat_map(|at| [0, 255].map(|byte| (at, byte))) {
            let mut damaged = cache.clone();
            damaged[at] = byte;
            cached(&damaged, "libx.so.1");
        }
    }

    /// The library that every program here has loaded.
    #[test]
    fn of_this_machine() {
        let path = find("libc.so.6").unwrap();
        assert!(path.is_absolute() && path.is_file(), "{}", path.display());
        assert_eq!(find("libno-such-library.so.1"), None);
    }
}
