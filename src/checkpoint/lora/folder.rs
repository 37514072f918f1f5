//! Where an adapter's files are: beside the weights, as PEFT's `save_pretrained` puts them.
//!
//! Flows in: the folder of the weights. Flows out: configuration and weights of the adapter in it, or in the folder
//! above it; and a warning of adapters that lie elsewhere and are not merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::mapping::Mapping;
use super::super::{Contents, SourceFile, detect};
use super::config::Config;
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::LazyTensor;
use crate::tensor::number::to_u64;

const CONFIG: &str = "adapter_config.json";
/// PEFT takes the first that is there.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// What LLaVA's training saves beside an adapter: the other trained tensors.
const OTHERS: &str = "non_lora_trainables.bin";
/// Longest configuration, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Tensors in no order.
type Named = Vec<(String, LazyTensor)>;

/// Whether a file of that name belongs to an adapter, and is no model's checkpoint.
pub(in super::super) fn is_adapter(name: &str) -> bool {
    WEIGHTS.contains(&name) || name == OTHERS
}

/// An adapter's files.
pub(super) struct Found {
    pub config: PathBuf,
    pub config_file: SourceFile,
    /// What the configuration holds.
    pub bytes: Vec<u8>,
    pub weights: Option<PathBuf>,
    /// Whether it lies in the folder of the weights, not above it.
    pub beside: bool,
}

impl Found {
    /// What its configuration says.
    pub fn settings(&self) -> Result<Config> {
        Config::read(&self.bytes).map_err(|e| e.at(&self.config))
    }

    /// The adapter's tensors.
    pub fn read(&self) -> Result<BTreeMap<String, LazyTensor>> {
        self.weights.as_deref().map_or(Ok(BTreeMap::new()), |path| Ok(read(path)?.tensors))
    }

    /// The tensors of LLaVA's file, by their plain names, and the file.
    pub fn others(&self) -> Result<(Named, Option<SourceFile>)> {
        let path = self.folder().join(OTHERS);
        if !path.is_file() {
            return Ok((Vec::new(), None));
        }
        let file = SourceFile::at(&path)?;
        let plain = |name: &str| match super::names::part(name) {
            super::Part::Plain(name) => Some(name),
            _ => None,
        };
        let tensors = read(&path)?.tensors.into_iter().filter_map(|(name, t)| Some((plain(&name)?, t))).collect();
        Ok((tensors, Some(file)))
    }

    fn folder(&self) -> &Path {
        self.config.parent().unwrap_or(Path::new(""))
    }
}

fn read(path: &Path) -> Result<Contents> {
    let map = Mapping::open(path).map_err(|e| e.at(path))?;
    detect::read(&map).and_then(Contents::stripped).map_err(|e| e.at(path))
}

/// The adapter of the weights in `folder`.
///
/// # Errors
/// `checkpoint.lora` when its configuration is too long; `io`.
pub(super) fn find(folder: &Path) -> Result<Option<Found>> {
    let above = if folder.as_os_str().is_empty() { PathBuf::from("..") } else { folder.join("..") };
    for (folder, beside) in [(folder, true), (above.as_path(), false)] {
        let config = folder.join(CONFIG);
        let weights = WEIGHTS.map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
        // Above, a configuration alone is no adapter.
        if !config.is_file() || (!beside && weights.is_none()) {
            continue;
        }
        let map = Mapping::open(&config)?;
        if to_u64(map.bytes().len()) > MAX_BYTES {
            let message = format!("holds LoRA settings (PEFT) of more than {MAX_BYTES} bytes");
            return Err(Error::new(Code::CHECKPOINT_LORA, message).at(&config));
        }
        let (config_file, bytes) = (SourceFile::of(&map), map.bytes().to_vec());
        return Ok(Some(Found { config, config_file, bytes, weights, beside }));
    }
    Ok(None)
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The warning of adapters in folders below that of the weights, which are not merged.
pub(super) fn elsewhere(folder: &Path) -> Option<Warning> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut found: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(CONFIG).is_file() && WEIGHTS.iter().any(|name| path.join(name).is_file()))
        .map(|path| file_name(&path))
        .collect();
    found.sort_unstable();
    let first = found.first()?;
    let more = if found.len() > 1 { format!(" and {} more", found.len() - 1) } else { String::new() };
    let message = format!(
        "the folder `{first}`{more} holds a LoRA adapter, which is not merged: to have it merged, put its adapter_config.json \
         and adapter_model.safetensors beside the weights"
    );
    Some(Warning::new(WarningCode::CHECKPOINT_CHOICE, message))
}
