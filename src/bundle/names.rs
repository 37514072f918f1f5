//! Names of files inside a bundle: checked where they are parsed, and again where they are joined to a folder.
//!
//! A bundle is copied between machines and may come from anyone. A name in it may therefore be no path, nothing that a
//! file system takes for another name (`CON`, `a.`, `a:b` on Windows), and none that this tool uses for itself next to
//! a bundle's files (they begin with a dot: `.lock`, `.writing-…`).

use std::path::{Component, Path, PathBuf};

use crate::error::{Code, Error, Result};

/// Maximum length of a name, in bytes: what common file systems can hold.
const MAX_BYTES: usize = 255;

/// Names that are devices on Windows, with any extension.
const DEVICES: [&str; 4] = ["CON", "PRN", "AUX", "NUL"];
/// The same, followed by a digit.
const NUMBERED_DEVICES: [&str; 2] = ["COM", "LPT"];

/// Checks that `name` is a plain file name, on every system the same.
///
/// # Errors
/// `bundle.path`.
pub(super) fn check(name: &str) -> Result<()> {
    let mut components = Path::new(name).components();
    let one = matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name);
    let characters = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    let ends = name.starts_with('.') || name.ends_with(['.', ' ']);
    if one && name.len() <= MAX_BYTES && !name.contains(characters) && !ends && !is_device(name) {
        return Ok(());
    }
    Err(Error::new(Code::BUNDLE_PATH, format!("`{name}` is not a plain file name inside the bundle")))
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered =
        |device: &&str| stem.strip_prefix(*device).is_some_and(|n| n.len() == 1 && n != "0" && n.parse::<u8>().is_ok());
    DEVICES.contains(&stem.as_str()) || NUMBERED_DEVICES.iter().any(numbered)
}

/// The path of a file in `folder`.
///
/// # Errors
/// `bundle.path` when `name` is not a plain file name.
pub(super) fn join(folder: &Path, name: &str) -> Result<PathBuf> {
    check(name).map_err(|e| e.at(folder))?;
    Ok(folder.join(name))
}

/// As [`join`], for a file that is there.
///
/// # Errors
/// As [`join`]; `bundle.path` too when it is a link, a folder or a device; `io` when it is missing.
pub(super) fn join_existing(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = join(folder, name)?;
    let meta = std::fs::symlink_metadata(&path).map_err(|e| Error::io(&path, "cannot open the file", e))?;
    if meta.is_file() {
        return Ok(path);
    }
    Err(Error::new(Code::BUNDLE_PATH, "the bundle's file is a link or a folder").at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for name in
            ["adapter.onnx", "text.onnx.data", "errors.svg", "a b.json", "console.json", "COM0", "NULL", "é.onnx"]
        {
            check(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let long = "a".repeat(MAX_BYTES + 1);
        let refused = [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "a/b",
            "a/",
            "./a",
            "../a",
            "a\\b",
            "C:a",
            "a\0b",
            "a\nb",
            ".lock",
            ".writing-1",
            "a.",
            "a ",
            "nul",
            "NUL.onnx",
            "com1",
            "Lpt9.json",
            "a:b",
            "a*",
            &long,
        ];
        for name in refused {
            assert_eq!(check(name).map_err(|e| e.code()), Err(Code::BUNDLE_PATH), "{name}");
            join(Path::new("x"), name).unwrap_err();
        }
    }
}
