//! Where the checkpoints of an export are.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, Selection, SourceFile, looks_like_checkpoint};
use crate::config::{Config, LlamaConfig};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::model::Part;

use super::{text_model, tokenizer, vision_config};

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
    /// What was chosen among several, each with the path that was taken; of use while that path is.
    pub choices: Vec<(PathBuf, Warning)>,
}

impl Sources {
    /// The parts of a model folder: `config.json`, `adapter.{pt,safetensors,pt2}`, `m3d/` (or
    /// `m3d-clip/`), `llama/`. Each may be replaced before [`super::run`]. Without an adapter of these names the only
    /// other file of the folder that is a checkpoint is taken.
    ///
    /// # Errors
    /// `checkpoint.format` when there are two adapters, `checkpoint.not_found` when a link in its place leads nowhere.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let adapters: Vec<PathBuf> = ADAPTER_FILES.map(|f| folder.join(f)).into_iter().filter(|p| p.exists()).collect();
        if adapters.len() > 1 {
            let names: Vec<String> = adapters.iter().map(|p| p.display().to_string()).collect();
            let message = format!("there are several adapters: {}; choose one with --adapter", names.join(", "));
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(folder));
        }
        if let Some(adapter) = adapters.into_iter().next() {
            return Ok(Self::with_adapter(folder, adapter));
        }
        let broken = ADAPTER_FILES.map(|f| folder.join(f)).into_iter().find(|path| path.is_symlink());
        let mut others = if broken.is_some() { Vec::new() } else { checkpoints(folder) };
        if others.len() > 1 {
            let names: Vec<String> = others.iter().map(|p| p.display().to_string()).collect();
            let expected = ADAPTER_FILES.join(", ");
            let names = names.join(", ");
            let message =
                format!("holds none of {expected}, and several other checkpoints: {names}; choose one with --adapter");
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(folder));
        }
        let Some(adapter) = others.pop() else {
            return Ok(Self::with_adapter(folder, broken.unwrap_or_else(|| folder.join(ADAPTER_FILES[0]))));
        };
        let name = adapter.file_name().unwrap_or_default().display();
        let message = format!("{name} is read as the adapter: it is the only checkpoint in the model folder");
        let warning = Warning::new(WarningCode::CHECKPOINT_CHOICE, message).at(folder);
        let mut found = Self::with_adapter(folder, adapter.clone());
        found.choices.push((adapter, warning));
        Ok(found)
    }

    /// As [`Self::in_folder`], with the adapter from elsewhere.
    pub fn with_adapter(folder: &Path, adapter: PathBuf) -> Self {
        let visions: Vec<&str> = VISION_FOLDERS.into_iter().filter(|f| folder.join(f).is_dir()).collect();
        let vision = folder.join(visions.first().unwrap_or(&VISION_FOLDERS[0]));
        let mut choices = Vec::new();
        if let [first, other] = visions.as_slice() {
            let message = format!("holds two vision folders: {first}/ is read, {other}/ is not; --vision chooses");
            choices.push((vision.clone(), Warning::new(WarningCode::CHECKPOINT_CHOICE, message).at(folder)));
        }
        let (config, text) = (folder.join("config.json"), folder.join("llama"));
        Self { config, adapter, selection: Selection::default(), vision, text, choices }
    }

    /// The warnings of the choices whose path is still among the sources.
    pub(crate) fn choices_in_use(&self) -> impl Iterator<Item = &Warning> {
        let used = [&self.adapter, &self.vision, &self.text];
        self.choices.iter().filter(move |(path, _)| used.contains(&path)).map(|(_, warning)| warning)
    }

    /// Checks that reports have no more tokens than the language model has positions, where its configuration is there
    /// and says so: weights are not read.
    ///
    /// # Errors
    /// `config.value`; `config.*` of the language model's configuration.
    #[cfg(feature = "runtime")]
    pub(crate) fn check_positions(&self, config: &Config) -> Result<()> {
        let text = crate::checkpoint::snapshot(&self.text)?;
        let folder = if text.is_dir() { text } else { parent(&text) };
        let path = folder.join("config.json");
        if !path.is_file() {
            return Ok(());
        }
        let (llama, ..) = text_model::hf_config(&path, config.text.max_tokens)?;
        llama.check_tokens(config.text.max_tokens).map_err(|e| e.at(&self.config))
    }

    /// Opens all of them.
    pub(super) fn load(&self) -> Result<Loaded> {
        let mut others = vec![SourceFile::at(&self.config)?];
        let config = Config::load(&self.config)?;
        let mut text = Checkpoint::open(&self.text)?;
        let text_folder = if text.path().is_dir() { text.path().to_owned() } else { parent(text.path()) };
        let model = text_model::read(&text, &text_folder, config.text.max_tokens)?;
        let llama = model.llama;
        if model.path.as_deref().is_some_and(text_model::is_tied) {
            text = text.with_tied_table();
        }
        if config.text.hidden != llama.hidden {
            let (ours, theirs) = (config.text.hidden, llama.hidden);
            let message =
                format!("text.hidden is {ours}, the language model's hidden size is {theirs}: they must agree");
            return Err(Error::new(Code::CONFIG_CONTRADICTION, message).at(&self.config));
        }
        llama.check_tokens(config.text.max_tokens).map_err(|e| e.at(&self.config))?;
        vision_config::check(&config, &self.config, &self.vision)?;
        let tokenizer = tokenizer::find(&text_folder, model.path.as_deref(), model.bos, llama.vocab)?;
        for file in std::iter::once(&tokenizer.path).chain(&tokenizer.adding) {
            others.push(SourceFile::at(file)?);
        }
        let choices = self.choices_in_use().cloned();
        Ok(Loaded {
            config_path: self.config.clone(),
            config,
            adapter: Checkpoint::open_with(&self.adapter, &self.selection)?,
            vision: Checkpoint::open(&self.vision)?,
            text,
            llama,
            text_config: model.path,
            warnings: choices.chain(model.warnings).chain(tokenizer.warnings.iter().cloned()).collect(),
            tokenizer,
            others,
        })
    }
}

/// The files of a folder that are checkpoints with tensors of an adapter and heads, under any prefix, sorted; and those
/// that could not be read, whose error says more than that they are not there.
fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let trained = |path: &PathBuf| {
        let own = |name: &str| ["adapter.", "vision_projection.", "classifier."].iter().any(|own| name.contains(own));
        looks_like_checkpoint(path) && Checkpoint::open(path).map_or(true, |found| found.names().any(own))
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(trained).collect();
    found.sort_unstable();
    found
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
    pub text_config: Option<PathBuf>,
    pub tokenizer: tokenizer::Found,
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
        let tokenizer = std::iter::once(&self.tokenizer.path).chain(&self.tokenizer.adding);
        all.extend(tokenizer.map(|path| ("tokenizer", path.clone())));
        let mut seen = std::collections::HashSet::new();
        all.retain(|(_, path)| seen.insert(path.clone()));
        all
    }
}
