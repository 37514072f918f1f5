//! The two halves of a `.hdr`/`.img` pair: which is which, and where the other one is.
//!
//! In: the path of one half. Out: the path of the other, beside it and under the same name; `.gz` and capitals may
//! differ. Nothing is opened.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// Whether the name is that of an image without its header.
pub(super) fn is_image(path: &Path) -> bool {
    let name = path.as_os_str().to_string_lossy().to_ascii_lowercase();
    name.ends_with(".img") || name.ends_with(".img.gz")
}

/// The `.img` that belongs to a `.hdr`.
pub(super) fn image_of(path: &Path) -> Result<PathBuf> {
    let stem = stem(path, &["hdr", "nii"]);
    beside(path, &stem, [".img", ".img.gz", ".IMG", ".IMG.GZ"]).ok_or_else(|| {
        let stem = stem.display();
        let text =
            format!("the header says that the voxels are in {stem}.img or {stem}.img.gz next to it; neither exists");
        Error::new(Code::NIFTI_PAIR, text).at(path)
    })
}

/// The `.hdr` that belongs to an `.img`, if it is there.
pub(super) fn header_of(path: &Path) -> Option<PathBuf> {
    beside(path, &stem(path, &["img"]), [".hdr", ".hdr.gz", ".HDR", ".HDR.GZ"])
}

/// What is wrong with an `.img` that has no header.
pub(super) fn image_alone(path: &Path) -> Error {
    let stem = stem(path, &["img"]);
    let text = format!(
        "an .img file holds only voxels, and there is no {0}.hdr or {0}.hdr.gz next to it: put it there",
        stem.display()
    );
    Error::new(Code::NIFTI_NOT_NIFTI, text).at(path)
}

fn stem(path: &Path, ends: &[&str]) -> PathBuf {
    let mut stem = PathBuf::from(path.file_name().unwrap_or_default());
    for ends in [&["gz"][..], ends] {
        if stem.extension().is_some_and(|e| ends.iter().any(|end| e.eq_ignore_ascii_case(end))) {
            stem.set_extension("");
        }
    }
    stem
}

fn beside(path: &Path, stem: &Path, ends: [&str; 4]) -> Option<PathBuf> {
    let mut found = ends.into_iter().map(|end| {
        let mut name = stem.to_owned().into_os_string();
        name.push(end);
        path.with_file_name(name)
    });
    found.find(|half| std::fs::metadata(half).is_ok_and(|m| !m.is_dir()))
}
