//! Where the checkpoints of an export are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Selection, SourceFile};
use crate::config::{Config, LlamaConfig, read_small};
use crate::error::{Code, Error, Result, Warning};
use crate::model::Part;

/// Names of the trained checkpoint inside a model folder.
const ADAPTER_FILES: [&str; 3] = ["adapter.pt", "adapter.safetensors", "adapter.pt2"];

/// Names of the vision transformer's folder inside a model folder; the first that exists is used.
const VISION_FOLDERS: [&str; 2] = ["m3d", "m3d-clip"];

/// The files and folders of an export.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `config.json`.
    pub config: PathBuf,
    /// The trained adapter and heads.
    pub adapter: PathBuf,
    /// Which of the adapter's tensors are meant, where its file has several sets.
    pub selection: Selection,
    /// The vision transformer: a file or a folder.
    pub vision: PathBuf,
    /// The language model: a file or a folder.
    pub text: PathBuf,
}

impl Sources {
    /// The parts of a model folder: `config.json`, `adapter.{pt,safetensors,pt2}`, `m3d/` (or
    /// `m3d-clip/`), `llama/`. Each may be replaced before [`super::run`].
    ///
    /// # Errors
    /// `checkpoint.format` when there are two adapters.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let adapters: Vec<PathBuf> = ADAPTER_FILES.map(|f| folder.join(f)).into_iter().filter(|p| p.exists()).collect();
        if adapters.len() > 1 {
            let names: Vec<String> = adapters.iter().map(|p| p.display().to_string()).collect();
            let message = format!("there are several adapters: {}; choose one with --adapter", names.join(", "));
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(folder));
        }
        let adapter = adapters.into_iter().next().unwrap_or_else(|| folder.join(ADAPTER_FILES[0]));
        Ok(Self::with_adapter(folder, adapter))
    }

    /// As [`Self::in_folder`], with the adapter from elsewhere.
    pub fn with_adapter(folder: &Path, adapter: PathBuf) -> Self {
        let vision = VISION_FOLDERS.map(|f| folder.join(f)).into_iter().find(|p| p.is_dir());
        Self {
            config: folder.join("config.json"),
            adapter,
            selection: Selection::default(),
            vision: vision.unwrap_or_else(|| folder.join(VISION_FOLDERS[0])),
            text: folder.join("llama"),
        }
    }

    /// Checks that reports have no more tokens than the language model has positions, where its configuration is there
    /// and says so: weights are not read.
    ///
    /// # Errors
    /// `config.value`; `config.*` of the language model's configuration.
    #[cfg(feature = "runtime")]
    pub(crate) fn check_positions(&self, config: &Config) -> Result<()> {
        let folder = if self.text.is_dir() { self.text.clone() } else { parent(&self.text) };
        let path = folder.join("config.json");
        if !path.is_file() {
            return Ok(());
        }
        let (llama, _) = hf_config(&path)?;
        llama.check_tokens(config.text.max_tokens).map_err(|e| e.at(&self.config))
    }

    /// Opens all of them.
    pub(super) fn load(&self) -> Result<Loaded> {
        let mut others = vec![SourceFile::at(&self.config)?];
        let config = Config::load(&self.config)?;
        let text = Checkpoint::open(&self.text)?;
        let text_folder = if self.text.is_dir() { self.text.clone() } else { parent(&self.text) };
        let (llama, bos, text_config) = llama_config(&text, &text_folder)?;
        if config.text.hidden != llama.hidden {
            let (ours, theirs) = (config.text.hidden, llama.hidden);
            let message =
                format!("text.hidden is {ours}, the language model's hidden size is {theirs}: they must agree");
            return Err(Error::new(Code::CONFIG_CONTRADICTION, message).at(&self.config));
        }
        llama.check_tokens(config.text.max_tokens).map_err(|e| e.at(&self.config))?;
        let tokenizer = tokenizer_file(&text_folder)?;
        others.push(SourceFile::at(&tokenizer)?);
        Ok(Loaded {
            config_path: self.config.clone(),
            config,
            adapter: Checkpoint::open_with(&self.adapter, &self.selection)?,
            vision: Checkpoint::open(&self.vision)?,
            text,
            llama,
            bos,
            text_config,
            tokenizer,
            warnings: Vec::new(),
            others,
        })
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
}

/// The opened sources of an export.
pub(super) struct Loaded {
    pub config_path: PathBuf,
    pub config: Config,
    pub adapter: Checkpoint,
    pub vision: Checkpoint,
    pub text: Checkpoint,
    pub llama: LlamaConfig,
    pub bos: u32,
    pub text_config: Option<PathBuf>,
    pub tokenizer: PathBuf,
    /// What to know of the folder, the configuration and the tokenizer; the checkpoints have theirs.
    pub warnings: Vec<Warning>,
    /// Configuration and tokenizer, as they were before they were read.
    others: Vec<SourceFile>,
}

impl Loaded {
    /// The checkpoint that a graph's weights come from.
    pub fn checkpoint_of(&self, part: Part) -> &Path {
        match part {
            Part::Vision => self.vision.path(),
            Part::Text => self.text.path(),
            Part::Adapter | Part::Heads => self.adapter.path(),
        }
    }

    /// The files whose content goes into the bundle, to be asked at the end whether they are still what was read.
    pub fn watched(&self) -> Vec<SourceFile> {
        let checkpoints = [&self.adapter, &self.vision, &self.text];
        checkpoints.into_iter().flat_map(|c| c.files()).chain(&self.others).cloned().collect()
    }

    /// Every file that was read, with its role in the manifest; each once.
    pub fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let checkpoints = [(Part::Adapter, &self.adapter), (Part::Vision, &self.vision), (Part::Text, &self.text)];
        let weights = checkpoints
            .into_iter()
            .flat_map(|(part, c)| c.files().iter().map(move |f| (part.as_str(), f.path.clone())));
        let mut all = vec![("config", self.config_path.clone())];
        all.extend(weights);
        all.extend(self.text_config.clone().map(|path| (Part::Text.as_str(), path)));
        all.push(("tokenizer", self.tokenizer.clone()));
        let mut seen = std::collections::HashSet::new();
        all.retain(|(_, path)| seen.insert(path.clone()));
        all
    }
}

/// Hugging Face's configuration of a language model, and the JSON that it was read from.
fn hf_config(path: &Path) -> Result<(LlamaConfig, Value)> {
    let json: Value = serde_json::from_str(&read_small(path)?)
        .map_err(|e| Error::new(Code::CONFIG_SYNTAX, e.to_string()).at(path).caused_by(e))?;
    Ok((LlamaConfig::from_hf(&json).map_err(|e| e.at(path))?, json))
}

/// The language model's sizes, its BOS token, and the file that they come from, unless it is the checkpoint itself.
fn llama_config(text: &Checkpoint, folder: &Path) -> Result<(LlamaConfig, u32, Option<PathBuf>)> {
    if let Some(params) = text.meta_params() {
        let rows = |name: &str| {
            let tensor = text.get(name).filter(|t| t.shape().len() == 2);
            let missing =
                || Error::new(Code::CHECKPOINT_TENSORS, format!("tensor `{name}` is missing")).at(text.path());
            tensor.map(|t| t.shape()[0]).ok_or_else(missing)
        };
        let (mlp, vocab) = (rows("model.layers.0.mlp.gate_proj.weight")?, rows("model.embed_tokens.weight")?);
        let json =
            serde_json::to_value(params).map_err(|e| Error::new(Code::CONFIG_SYNTAX, e.to_string()).at(text.path()))?;
        let config = LlamaConfig::from_meta(&json, mlp, vocab).map_err(|e| e.at(text.path()))?;
        return Ok((config, 1, None));
    }
    let path = folder.join("config.json");
    let (config, json) = hf_config(&path)?;
    let bos = match json.get("bos_token_id").filter(|v| !v.is_null()) {
        None => 1,
        Some(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            Error::new(Code::CONFIG_VALUE, format!("bos_token_id is {id}, expected a token's number")).at(&path)
        })?,
    };
    Ok((config, bos, Some(path)))
}

/// `tokenizer.json` or `tokenizer.model` next to the language model, or (as Meta's download has it) one folder above.
fn tokenizer_file(folder: &Path) -> Result<PathBuf> {
    let above = folder.join("..");
    let places = [folder, &above].into_iter().flat_map(|f| ["tokenizer.json", "tokenizer.model"].map(|n| f.join(n)));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = "neither tokenizer.json nor tokenizer.model lies here or one folder above";
        Error::new(Code::TOKENIZER_MISSING, message).at(folder)
    })
}
