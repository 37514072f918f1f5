//! What may be written over: files of this program, recognized by their content, and with `--force` any file.

use std::path::{Path, PathBuf};

use crate::checkpoint;
use crate::error::{Code, Error, Result};
use crate::infer::results;
use crate::plot;
use crate::volume;

/// What an output will be; each is recognized in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// Results as JSON lines.
    Results,
    /// Results as CSV, of a list with these other columns.
    Table(&'a [String]),
    /// Tensors of `--save-tensors` or `--save-adapter`.
    Tensors,
    /// The volume of `--save-conformed`.
    Volume,
    /// The picture of `--save-preview`.
    Preview,
    /// A plot.
    Plot,
}

impl Kind<'_> {
    /// Whether the file is one that this program wrote.
    fn wrote(self, path: &Path) -> Result<bool> {
        match self {
            Self::Results => results::is_results(path),
            Self::Table(columns) => results::is_table(path, columns),
            Self::Tensors => checkpoint::has_maker(path),
            Self::Volume => volume::is_saved_volume(path),
            Self::Preview => volume::is_saved_preview(path),
            Self::Plot => plot::is_marked(path),
        }
    }
}

/// Checks, before any work, that the outputs can be written and that no file is lost: none is an input or another
/// output, each is a file or nothing so far, and what exists is ours or may be replaced by `force`.
///
/// # Errors
/// `output.exists`; `io` when an output's folder is missing or what exists cannot be read.
pub(super) fn check(outputs: &[(&Path, Kind<'_>)], inputs: &[&Path], force: bool) -> Result<()> {
    let inputs: Vec<PathBuf> = inputs.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let exists = |path: &Path, message: &str| Err(Error::new(Code::OUTPUT_EXISTS, message).at(path));
    for (i, (output, kind)) in outputs.iter().enumerate() {
        if output.canonicalize().is_ok_and(|path| inputs.contains(&path)) {
            return exists(output, "the output is also an input: choose another name");
        }
        if outputs.iter().take(i).any(|(other, _)| other == output) {
            return exists(output, "two outputs have this name: choose another for one of them");
        }
        // Checked now, not after a minute of work.
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::new(Code::IO, "the output's folder does not exist: create it first").at(*output));
        }
        check_existing(output, *kind, force)?;
    }
    Ok(())
}

/// Checks what there is in an output's place. A link is followed to be judged, and itself replaced.
fn check_existing(path: &Path, kind: Kind<'_>, force: bool) -> Result<()> {
    let exists = |message: &str| Err(Error::new(Code::OUTPUT_EXISTS, message).at(path));
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => exists("the output exists and is not a file: choose another name"),
        Ok(_) if force => Ok(()),
        // Nothing is lost. Whoever made the name first (`mktemp`) wants it filled.
        Ok(meta) if meta.len() == 0 => Ok(()),
        Ok(_) if kind.wrote(path)? => Ok(()),
        Ok(_) => exists("the output exists and was not made by this program: choose another name, or use --force"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match std::fs::symlink_metadata(path) {
            Ok(_) if !force => exists("the output is a link that leads to no file: remove it, or use --force"),
            _ => Ok(()),
        },
        Err(e) => Err(Error::io(path, "cannot read the output", e)),
    }
}
