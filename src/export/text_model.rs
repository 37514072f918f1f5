//! What the language model is: its configuration, read and held against its weights.
//!
//! Flows in: the opened checkpoint and its folder's `config.json` (or Meta's `params.json`, which the checkpoint has).
//! Flows out: sizes and constants, the BOS token, and what to tell of them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::config::{LlamaConfig, language_model, read_small};
use crate::error::{Code, Error, Result, Warning};
use crate::json;

/// How the name of the weight of the first layer's queries ends, under whichever prefix.
const QUERIES: &str = "layers.0.self_attn.q_proj.weight";

/// The language model of an export.
pub(super) struct TextModel {
    pub llama: LlamaConfig,
    pub bos: u32,
    /// The file that they come from, unless it is the checkpoint itself.
    pub path: Option<PathBuf>,
    pub warnings: Vec<Warning>,
}

/// Hugging Face's configuration of a language model, what to tell of it, and the JSON that it was read from.
///
/// # Errors
/// `config.*`, naming the file.
pub(super) fn hf_config(path: &Path, max_tokens: usize) -> Result<(LlamaConfig, Vec<Warning>, Value)> {
    let json = read_json(path)?;
    let (llama, warnings) = LlamaConfig::from_hf_for(&json, max_tokens).map_err(|e| e.at(path))?;
    Ok((llama, warnings.iter().map(|warning| warning.at(path)).collect(), json))
}

/// A configuration file as JSON.
///
/// # Errors
/// `config.syntax`, naming the file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&json::strict(&read_small(path)?))
        .map_err(|e| Error::new(Code::CONFIG_SYNTAX, e.to_string()).at(path).caused_by(e))
}

/// The language model of a checkpoint in `folder`, for reports of at most `max_tokens` tokens.
///
/// # Errors
/// `config.*`; `checkpoint.tensors` when Meta's layout lacks the tensors that say the remaining sizes.
pub(super) fn read(text: &Checkpoint, folder: &Path, max_tokens: usize) -> Result<TextModel> {
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
        let llama = LlamaConfig::from_meta(&json, mlp, vocab).map_err(|e| e.at(text.path()))?;
        return Ok(TextModel { llama: llama.for_tokens(max_tokens), bos: 1, path: None, warnings: vec![] });
    }
    let path = folder.join("config.json");
    let (mut llama, warnings, json) = hf_config(&path, max_tokens)?;
    let queries = text.names().find(|name| name.ends_with(QUERIES)).and_then(|name| text.get(name));
    if let Some(&rows) = queries.and_then(|t| t.shape().first()) {
        llama = llama.with_query_rows(&json, rows);
    }
    let bos = match bos_token(&json) {
        None => 1,
        Some(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            Error::new(Code::CONFIG_VALUE, format!("bos_token_id is {id}, expected a token's number")).at(&path)
        })?,
    };
    Ok(TextModel { llama, bos, path: Some(path), warnings })
}

/// Whether a configuration says that the embedding table is also the output layer.
pub(super) fn is_tied(config: &Path) -> bool {
    let tied = |json: &Value| json.get("tie_word_embeddings").and_then(Value::as_bool);
    read_json(config).is_ok_and(|json| tied(&json).or_else(|| tied(language_model(&json).0)).unwrap_or(false))
}

/// The BOS token of the language model, or of the whole that it is a part of.
fn bos_token(json: &Value) -> Option<&Value> {
    let places = [language_model(json).0, json];
    places.into_iter().find_map(|place| place.get("bos_token_id").filter(|id| !id.is_null()))
}
