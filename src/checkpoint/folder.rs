//! Which checkpoint a folder holds.
//!
//! Flows in: a folder. Flows out: one checkpoint and a sentence that says which.
//!
//! Known names come first, in this order: `model.safetensors.index.json`, `model.safetensors`,
//! `pytorch_model.bin.index.json`, `pytorch_model.bin`, `pretrained_ViT.bin`, `consolidated.00.pth` with `params.json`.
//! Without one of them the folder must hold exactly one `*.index.json`, or else exactly one file that ends in
//! `.safetensors`, `.bin`, `.pt`, `.pth` or `.pt2`. Names only propose; what a file is, its content decides.
//!
//! # Errors
//! `checkpoint.not_found` when there is none; `checkpoint.format` lists the candidates when there are several.
//!
//! # Safety
//! No `unsafe`; nothing is read but the folder's list of names.

use std::path::Path;

use super::{Opened, listed, meta};
use crate::error::{Code, Error, Result};

const KNOWN: &[&str] = &[
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pretrained_ViT.bin",
];
const ENDINGS: &[&str] = &[".safetensors", ".bin", ".pt", ".pth", ".pt2"];
/// Files of a training run that hold no weights.
const NOT_WEIGHTS: &[&str] = &["training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin"];

/// Opens the checkpoint in `folder`; the sentence says which file it is.
pub(super) fn open(folder: &Path, key: Option<&str>) -> Result<(Opened, String)> {
    let names = names(folder)?;
    if let Some(archive) = unpacked(folder, &names) {
        let message = format!(
            "is an unpacked archive of torch.save ({archive}): a browser or file manager unzipped it. Take the original \
             file, or zip it again without compression: zip -0 -r adapter.pt FOLDER, run one folder above"
        );
        return Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(folder));
    }
    let holds = |name: &str| names.iter().any(|n| n == name);
    if let Some(known) = KNOWN.iter().find(|known| holds(known)) {
        return Ok((super::open_file_at(&folder.join(known), key)?, (*known).to_owned()));
    }
    if holds("consolidated.00.pth") && holds("params.json") {
        let opened = meta::read(folder, &names)?;
        let slices = opened.files.len() - 1;
        return Ok((opened, format!("consolidated.00.pth and on ({slices} in all) with params.json")));
    }
    let indices: Vec<&str> = names.iter().map(String::as_str).filter(|n| n.ends_with(".index.json")).collect();
    let weights = |n: &&str| ENDINGS.iter().any(|e| n.ends_with(e)) && !is_leftover(n);
    let files: Vec<&str> = names.iter().map(String::as_str).filter(weights).collect();
    let candidates = if indices.is_empty() { files } else { indices };
    match candidates.as_slice() {
        [] => {
            let message = "holds no checkpoint; expected *.safetensors, *.index.json, *.bin, *.pt, *.pth, \
                           or consolidated.00.pth with params.json";
            Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(folder))
        }
        [only] if only.starts_with("consolidated.") && only.ends_with(".pth") => {
            let message = format!("holds {only} without params.json, which says how its heads are laid out");
            Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(folder))
        }
        [only] => Ok((super::open_file_at(&folder.join(only), key)?, (*only).to_owned())),
        several => {
            let message = format!("holds several checkpoints ({}): give the path of one of them", listed(several));
            Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(folder))
        }
    }
}

/// The records that a folder has in common with an archive of `torch.save`, itself or its only folder.
fn unpacked(folder: &Path, names: &[String]) -> Option<String> {
    const PICKLE: &str = "data.pkl";
    if names.iter().any(|name| name == PICKLE) {
        return Some("data.pkl and data/".into());
    }
    let mut below = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).take(3).filter(|e| e.path().is_dir());
    let (only, None) = (below.next()?, below.next()) else { return None };
    let found = names.is_empty() && only.path().join(PICKLE).is_file();
    found.then(|| format!("{}/data.pkl", only.file_name().to_string_lossy()))
}

fn is_leftover(name: &str) -> bool {
    NOT_WEIGHTS.contains(&name) || name.starts_with("rng_state")
}

/// The names of the folder's regular files, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let listing = |e| Error::io(folder, "cannot list the folder", e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        // Links are followed: the Hugging Face cache is made of them.
        if let Ok(name) = entry.file_name().into_string()
            && std::fs::metadata(entry.path()).is_ok_and(|about| about.is_file())
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
