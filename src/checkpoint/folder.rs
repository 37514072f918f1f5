//! Which checkpoint a folder holds.
//!
//! Flows in: a folder. Flows out: one checkpoint and a sentence that says which, and warnings of those that are not
//! read.
//!
//! Known names come first, in the order of transformers' `from_pretrained`: `model.safetensors`,
//! `model.safetensors.index.json`, `pytorch_model.bin`, `pytorch_model.bin.index.json`; then `pretrained_ViT.bin`,
//! `consolidated.00.pth` with `params.json`, `.metadata` with `*.distcp`, DeepSpeed's `*_optim_states.pt` (or the
//! folder that its `latest` names). Without any of them the folder must hold exactly one `*.index.json`, or else
//! exactly one file that ends in `.safetensors`, `.bin`, `.pt`, `.pth` or `.pt2`, or else exactly one whose content is
//! a checkpoint. Names only propose; what a file is, its content decides.
//!
//! # Errors
//! `checkpoint.not_found` when there is none, or a link in its place leads nowhere; `checkpoint.format` lists the
//! candidates when there are several.
//!
//! # Safety
//! No `unsafe`; nothing is read but the folder's list of names, and the first bytes of files of unknown names.

use std::path::{Component, Path, PathBuf};

use super::mapping::{Mapping, not_found};
use super::{Opened, dcp, detect, index, listed, lora, meta, zero};
use crate::error::{Code, Error, Result, Warning, WarningCode};

const KNOWN: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pretrained_ViT.bin",
];
const ENDINGS: &[&str] = &[".safetensors", ".bin", ".pt", ".pth", ".pt2"];
/// Files of a training run that hold no weights.
const NOT_WEIGHTS: &[&str] = &["training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin"];
/// Endings of files whose content is not looked at.
const TEXTS: &[&str] = &[".json", ".txt", ".md", ".py", ".model", ".yaml", ".yml", ".csv", ".tsv", ".log", ".jinja"];

/// What a folder holds, by name, sorted.
struct Listing {
    files: Vec<String>,
    folders: Vec<String>,
    /// Links that lead nowhere.
    broken: Vec<String>,
}

/// Opens the checkpoint in `folder`; the sentence says which file it is.
pub(super) fn open(folder: &Path, key: Option<&str>) -> Result<(Opened, String)> {
    let listing = Listing::of(folder)?;
    let known: Vec<&str> = KNOWN.iter().copied().filter(|known| listing.holds(known)).collect();
    refuse_broken(folder, &listing, known.first().copied())?;
    if let Some((&first, others)) = known.split_first() {
        return open_known(folder, &listing, first, others, key);
    }
    let names = &listing.files;
    if listing.holds("consolidated.00.pth") && listing.holds("params.json") {
        let opened = meta::read(folder, names)?;
        let slices = opened.files.len() - 1;
        return Ok((opened, format!("consolidated.00.pth and on ({slices} in all) with params.json")));
    }
    if let Some(opened) = of_several_processes(folder, &listing, key)? {
        return Ok(opened);
    }
    let indices: Vec<&str> = names.iter().map(String::as_str).filter(|n| n.ends_with(".index.json")).collect();
    let mut files: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_weights(name)).collect();
    // A LoRA adapter is no candidate beside the model that it is for.
    if files.iter().any(|name| !lora::is_adapter(name)) {
        files.retain(|name| !lora::is_adapter(name));
    }
    let candidates = if indices.is_empty() { files } else { indices };
    match candidates.as_slice() {
        [] => open_by_content(folder, &listing, key),
        [only] if only.starts_with("consolidated.") && only.ends_with(".pth") => {
            let message = format!("holds {only} without params.json, which says how its heads are laid out");
            Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(folder))
        }
        [only] => Ok((super::open_file_at(&folder.join(only), key)?, (*only).to_owned())),
        several => Err(several_checkpoints(folder, several)),
    }
}

fn several_checkpoints(folder: &Path, names: &[&str]) -> Error {
    let message = format!("holds several checkpoints ({}): give the path of one of them", listed(names));
    Error::new(Code::CHECKPOINT_FORMAT, message).at(folder)
}

/// Opens the first of the known names, and says which are there besides.
fn open_known(
    folder: &Path,
    listing: &Listing,
    first: &str,
    others: &[&str],
    key: Option<&str>,
) -> Result<(Opened, String)> {
    let mut beside: Vec<String> = Vec::new();
    for other in others {
        let shards = if other.ends_with(".index.json") { index::weight_map(&folder.join(other))? } else { None };
        let mut shards: Vec<String> = shards.into_iter().flat_map(|map| map.into_values()).collect();
        shards.sort_unstable();
        shards.dedup();
        // An index of this very file is no other set of weights.
        if shards.iter().eq([first]) {
            continue;
        }
        let gone = shards.iter().any(|shard| !folder.join(shard).exists());
        beside.push(format!("{other}{}", if gone { " (whose shards are missing)" } else { "" }));
    }
    if listing.holds("consolidated.00.pth") && listing.holds("params.json") {
        beside.push("consolidated.00.pth".into());
    }
    if listing.holds(dcp::METADATA) {
        beside.push(format!("the distributed checkpoint ({})", dcp::METADATA));
    }
    let mut opened = super::open_file_at(&folder.join(first), key).map_err(|e| match beside.first() {
        Some(other) if e.code() == Code::CHECKPOINT_NOT_FOUND => {
            let message = format!("{}; next to it lies {other}: give its path if it is the model", e.message());
            Error::new(e.code(), message).at(e.path().unwrap_or(folder))
        }
        _ => e,
    })?;
    if !beside.is_empty() {
        let message = format!("holds several sets of weights: {first} is read, {} is not", beside.join(", "));
        opened.contents.warnings.push(Warning::new(WarningCode::CHECKPOINT_CHOICE, message));
    }
    Ok((opened, first.to_owned()))
}

/// Refuses links that lead nowhere in the place of weights, unless `chosen` comes before them.
fn refuse_broken(folder: &Path, listing: &Listing, chosen: Option<&str>) -> Result<()> {
    let rank = |name: &str| KNOWN.iter().position(|known| *known == name).unwrap_or(KNOWN.len());
    let weights = |name: &&String| is_weights(name) || name.ends_with(".index.json");
    let broken = listing.broken.iter().filter(weights).min_by_key(|name| rank(name));
    match (broken, chosen) {
        // Shards are missed when their index is read.
        (Some(broken), Some(chosen)) if rank(broken) > rank(chosen) => Ok(()),
        (Some(broken), _) => Err(not_found(&folder.join(broken))),
        (None, _) => Ok(()),
    }
}

/// Opens what several processes saved, each its part: DCP, ZeRO.
fn of_several_processes(folder: &Path, listing: &Listing, key: Option<&str>) -> Result<Option<(Opened, String)>> {
    let open = |name: &str| Mapping::open(&folder.join(name));
    let ending = |ending: &str| listing.files.iter().any(|name| name.ends_with(ending));
    if listing.holds(dcp::METADATA) && (ending(dcp::ENDING) || !listing.files.iter().any(|name| is_weights(name))) {
        let opened = dcp::read(folder, &open, key)?;
        return Ok(Some((opened, format!("{} and its {} files", dcp::METADATA, dcp::ENDING))));
    }
    if ending(dcp::ENDING) {
        let message = format!(
            "holds files of a distributed checkpoint ({}) without their {}, which says what is in them: copy it from where \
             they were saved, or convert the whole folder there: {}",
            dcp::ENDING,
            dcp::METADATA,
            dcp::converter(Path::new("FOLDER"))
        );
        return Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(folder));
    }
    if ending(zero::OPTIMIZER) {
        let opened = zero_folder(folder, &listing.files, key)?;
        return Ok(Some((opened, format!("the *{} of ZeRO", zero::OPTIMIZER))));
    }
    if let Some(tag) = first_line(&folder.join("latest")).filter(|tag| listing.folders.contains(tag)) {
        let inner = folder.join(&tag);
        let names = Listing::of(&inner)?.files;
        if names.iter().any(|name| name.ends_with(zero::OPTIMIZER)) {
            let opened = zero_folder(&inner, &names, key)?;
            return Ok(Some((opened, format!("{tag}, which `latest` names"))));
        }
    }
    Ok(None)
}

/// Opens what ZeRO saved, which has one set of weights and no keys.
fn zero_folder(folder: &Path, names: &[String], key: Option<&str>) -> Result<Opened> {
    let opened = zero::read(folder, names, &|name| Mapping::open(&folder.join(name)))?;
    let contents = opened.contents.without_key(key).map_err(|e| e.at(folder))?;
    Ok(Opened { contents, ..opened })
}

/// Opens the one file whose content is a checkpoint, whatever it is called.
fn open_by_content(folder: &Path, listing: &Listing, key: Option<&str>) -> Result<(Opened, String)> {
    let names: Vec<&str> = listing.files.iter().map(String::as_str).collect();
    let found: Vec<&str> = names.into_iter().filter(|name| looks_like_checkpoint(&folder.join(name))).collect();
    match found.as_slice() {
        [only] => {
            let mut opened = super::open_file_at(&folder.join(only), key)?;
            let message = format!("{only} is read: it is the only checkpoint in this folder");
            opened.contents.warnings.push(Warning::new(WarningCode::CHECKPOINT_CHOICE, message));
            Ok((opened, (*only).to_owned()))
        }
        [] => Err(nothing(folder, listing)),
        several => Err(several_checkpoints(folder, several)),
    }
}

/// Whether a file of any name is a checkpoint, by its content; texts and hidden files are not looked at.
pub(crate) fn looks_like_checkpoint(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let lower = name.to_ascii_lowercase();
    let passed_over = name.starts_with('.') || is_leftover(name) || TEXTS.iter().any(|end| lower.ends_with(end));
    !passed_over && Mapping::open(path).is_ok_and(|map| detect::holds_weights(&map))
}

/// The error for a folder without a checkpoint: what it is, or where one is.
fn nothing(folder: &Path, listing: &Listing) -> Error {
    let unpacked = |files: &Listing| files.holds("data.pkl") && files.folders.iter().any(|name| name == "data");
    let inner = |name: &&String| Listing::of(&folder.join(name)).is_ok_and(|inner| unpacked(&inner));
    if unpacked(listing) || listing.folders.iter().any(|name| inner(&name)) {
        let message = "is an unpacked archive of torch.save: some programs unpack .pt files on their own. Copy the file \
                       itself again, or zip the folder that holds data.pkl without compression: zip -0 -r adapter.pt NAME";
        return Error::new(Code::CHECKPOINT_FORMAT, message).at(folder);
    }
    let holds = |name: &&String| {
        Listing::of(&folder.join(name)).is_ok_and(|inner| {
            let known = KNOWN.iter().chain(&[dcp::METADATA]).any(|known| inner.holds(known));
            known || inner.files.iter().any(|name| is_weights(name))
        })
    };
    let below: Vec<&String> = listing.folders.iter().filter(|name| !name.starts_with('.')).filter(holds).collect();
    let hint = if below.is_empty() {
        String::new()
    } else {
        format!("; there are some in its folders ({}): give the path of one", listed(&below))
    };
    let message = format!(
        "holds no checkpoint; expected *.safetensors, *.index.json, *.bin, *.pt, *.pth, a distributed checkpoint, or \
         consolidated.00.pth with params.json{hint}"
    );
    Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(folder)
}

/// Refuses a file that is one part of what several processes saved, with the folder as the way out.
pub(super) fn refuse_part(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !(name.ends_with(dcp::ENDING) || name.ends_with(dcp::METADATA)) || !path.is_file() {
        return Ok(());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let message = format!(
        "is one file of a distributed checkpoint: name its folder ({}), with all files of it, or convert that: {}",
        folder.display(),
        dcp::converter(folder)
    );
    Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(path))
}

/// The snapshot of a repository folder of the Hugging Face cache (`models--ORG--NAME`) that its `refs/main` names, or
/// its only one; any other path as it is.
///
/// # Errors
/// `checkpoint.not_found` with the snapshots, when there are several and no `refs/main`, or none.
pub(crate) fn snapshot(path: &Path) -> Result<PathBuf> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() || !(path.join("refs").is_dir() || path.join("blobs").is_dir()) {
        return Ok(path.to_owned());
    }
    let names = Listing::of(&snapshots)?.folders;
    let main = first_line(&path.join("refs").join("main")).filter(|name| names.contains(name));
    match (main, names.as_slice()) {
        (Some(main), _) => Ok(snapshots.join(main)),
        (None, [only]) => Ok(snapshots.join(only)),
        (None, several) => {
            let what = "is a repository folder of the Hugging Face cache whose refs/main names none of its snapshots";
            let message = format!("{what} (snapshots/: {}): give the path of one of them", listed(several));
            Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(path))
        }
    }
}

/// The first line of a small text that is a plain name: of a folder next to it.
fn first_line(path: &Path) -> Option<String> {
    let about = std::fs::metadata(path).ok()?;
    if !about.is_file() || about.len() > 4096 {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let name = text.lines().next()?.trim().to_owned();
    let mut parts = Path::new(&name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain.then_some(name)
}

fn is_weights(name: &str) -> bool {
    ENDINGS.iter().any(|e| name.ends_with(e)) && !is_leftover(name) && !name.starts_with("._")
}

fn is_leftover(name: &str) -> bool {
    NOT_WEIGHTS.contains(&name) || name.starts_with("rng_state")
}

impl Listing {
    fn of(folder: &Path) -> Result<Self> {
        let listing = |e| Error::io(folder, "cannot list the folder", e);
        let (mut files, mut folders, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Links are followed: the Hugging Face cache is made of them.
            match std::fs::metadata(entry.path()) {
                Ok(about) if about.is_file() => files.push(name),
                Ok(about) if about.is_dir() => folders.push(name),
                Ok(_) => {}
                Err(_) => broken.push(name),
            }
        }
        files.sort_unstable();
        folders.sort_unstable();
        broken.sort_unstable();
        Ok(Self { files, folders, broken })
    }

    fn holds(&self, name: &str) -> bool {
        self.files.binary_search_by(|file| file.as_str().cmp(name)).is_ok()
    }
}
