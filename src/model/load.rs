//! Checkpoints → the weights of the three models.
//!
//! Each model's tensors are found under whichever known prefix they were saved; what belongs to other models in
//! the same file is skipped and listed, what is named like the model's own but fits nowhere is refused.

use super::{Weights, keys};
use crate::checkpoint::{Checkpoint, Requirements};
use crate::config::{Config, LlamaConfig, Norm};
use crate::error::{Code, Error, Result, Warning};

/// First parts of the names that belong to the trained checkpoint.
const TRAINED: [&str; 6] =
    ["adapter.", "vision_projection.", "text_projection.", "classifier.", "image_classifier.", "logit_scale"];
/// First parts of the names that belong to the vision transformer.
const VISION: [&str; 4] = ["blocks.", "patch_embedding.", "norm.", "cls_token"];
/// First parts of the names that belong to the language model.
const TEXT: [&str; 3] = ["layers.", "embed_tokens.", "norm."];

/// The weights of all three models.
#[derive(Debug)]
pub struct Models {
    /// Adapter and heads, by state-dict key.
    pub trained: Weights,
    /// The vision transformer, by state-dict key without prefix.
    pub vision: Weights,
    /// The language model, by state-dict key without prefix.
    pub text: Weights,
    /// Whether there is an image-only classifier.
    pub image_head: bool,
    /// Names of the tensors that no model uses, each once, sorted.
    pub skipped: Vec<String>,
    /// What to know of the checkpoints.
    pub warnings: Vec<Warning>,
}

/// The trained part of a model: adapter and heads.
#[derive(Debug)]
pub struct Trained {
    /// Adapter and heads, by state-dict key.
    pub weights: Weights,
    /// Whether there is an image-only classifier.
    pub image_head: bool,
    /// Names of the checkpoint's other tensors, each once, sorted.
    pub skipped: Vec<String>,
    /// What to know of the checkpoint.
    pub warnings: Vec<Warning>,
}

/// Finds adapter and heads in a checkpoint, by the shapes that `config` gives them.
///
/// # Errors
/// `checkpoint.tensors`, naming every missing, unexpected or wrong-shaped tensor with found and expected shape.
pub fn trained(config: &Config, checkpoint: &Checkpoint) -> Result<Trained> {
    let mut skipped = Vec::new();
    let weights = pick(checkpoint, &TRAINED, trained_requirements(config, checkpoint), &mut skipped)?;
    skipped.sort();
    skipped.dedup();
    let warnings = warnings(checkpoint);
    Ok(Trained { image_head: has_image_head(config, &weights), weights, skipped, warnings })
}

/// Finds the vision transformer in a checkpoint, under whichever known prefix; also names the checkpoint's other
/// tensors.
///
/// # Errors
/// `checkpoint.tensors`, naming every missing, unexpected or wrong-shaped tensor with found and expected shape.
pub fn vision(config: &Config, checkpoint: &Checkpoint) -> Result<(Weights, Vec<String>)> {
    check_layers("vision.layers", config.vision.layers, checkpoint)?;
    let mut skipped = Vec::new();
    let view = view(checkpoint, &keys::VISION_PREFIXES, "cls_token");
    let weights = pick(&view, &VISION, vision_requirements(config), &mut skipped)?;
    Ok((weights, skipped))
}

/// Whether a tensor of that name belongs to the trained part of a model, also where no graph reads it.
pub fn is_trained(name: &str) -> bool {
    TRAINED.iter().any(|prefix| name.starts_with(prefix))
}

/// A checkpoint's warnings, naming it.
fn warnings(checkpoint: &Checkpoint) -> Vec<Warning> {
    checkpoint.warnings().iter().map(|warning| warning.at(checkpoint.path())).collect()
}

fn has_image_head(config: &Config, weights: &Weights) -> bool {
    keys::image_classifier(config).iter().all(|(name, _)| weights.contains(name))
}

impl Models {
    /// Finds every tensor of the three models, or reports all that is wrong with all of them.
    ///
    /// # Errors
    /// `checkpoint.tensors`, naming every missing, unexpected or wrong-shaped tensor with found and expected shape.
    pub fn find(
        config: &Config,
        llama: &LlamaConfig,
        trained: &Checkpoint,
        vision: &Checkpoint,
        text: &Checkpoint,
    ) -> Result<Self> {
        let warnings = [trained, vision, text].into_iter().flat_map(warnings).collect();
        check_layers("vision.layers", config.vision.layers, vision)?;
        check_layers("the language model's number of layers", llama.layers, text)?;
        let mut skipped = Vec::new();
        let found = [
            pick(trained, &TRAINED, trained_requirements(config, trained), &mut skipped),
            pick(
                &view(vision, &keys::VISION_PREFIXES, "cls_token"),
                &VISION,
                vision_requirements(config),
                &mut skipped,
            ),
            pick(
                &view(text, &keys::TEXT_PREFIXES, "embed_tokens.weight"),
                &TEXT,
                text_requirements(llama),
                &mut skipped,
            ),
        ];
        let [trained_weights, vision, text] = all(found)?;
        skipped.sort();
        skipped.dedup();
        let image_head = has_image_head(config, &trained_weights);
        Ok(Self { trained: trained_weights, vision, text, image_head, skipped, warnings })
    }
}

/// Refuses more layers than the checkpoint has tensors, before each is listed with what it needs.
fn check_layers(what: &str, layers: usize, checkpoint: &Checkpoint) -> Result<()> {
    let held = checkpoint.names().count();
    if layers <= held {
        return Ok(());
    }
    let message = format!("{what} is {layers}, and the checkpoint has {held} tensors in all");
    Err(Error::new(Code::CONFIG_VALUE, message).at(checkpoint.path()))
}

/// The model under its prefix; the whole checkpoint where no prefix has `key`, so that it is reported missing.
fn view(checkpoint: &Checkpoint, prefixes: &[&str], key: &str) -> Checkpoint {
    checkpoint.under(checkpoint.find_prefix(prefixes, key).unwrap_or(""))
}

fn pick(
    checkpoint: &Checkpoint,
    own: &[&str],
    requirements: Requirements,
    skipped: &mut Vec<String>,
) -> Result<Weights> {
    let foreign: Vec<&str> = checkpoint.names().filter(|n| !own.iter().any(|prefix| n.starts_with(prefix))).collect();
    skipped.extend(foreign.iter().map(|name| (*name).to_owned()));
    let picked = requirements.pick(&checkpoint.subset(|name| !foreign.contains(&name)));
    let picked = picked.map_err(|e| e.at(checkpoint.path()))?;
    skipped.extend(picked.skipped);
    Ok(picked.tensors.into_iter().collect())
}

/// All three, or one error with what is wrong with each.
fn all(found: [Result<Weights>; 3]) -> Result<[Weights; 3]> {
    let errors: Vec<&Error> = found.iter().filter_map(|r| r.as_ref().err()).collect();
    if errors.len() > 1 {
        let lines: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
        return Err(Error::new(Code::CHECKPOINT_TENSORS, lines.join("; and ")));
    }
    let [a, b, c] = found;
    Ok([a?, b?, c?])
}

fn require(requirements: Requirements, keys: Vec<keys::Key>) -> Requirements {
    keys.into_iter().fold(requirements, |r, (name, shape)| r.require(name, &shape))
}

fn trained_requirements(config: &Config, checkpoint: &Checkpoint) -> Requirements {
    let mut r = require(Requirements::new(), keys::adapter(config));
    r = require(r, keys::heads(config));
    let image = keys::image_classifier(config);
    // Both of its tensors or neither.
    if image.iter().any(|(name, _)| checkpoint.contains(name)) {
        r = require(r, image);
    }
    if config.adapter.norm == Norm::Batch {
        r = r.skip("adapter.*.num_batches_tracked");
    }
    r.skip("logit_scale")
}

fn vision_requirements(config: &Config) -> Requirements {
    require(Requirements::new(), keys::vision(config)).skip("blocks.*.norm_cross_attn.*").skip("blocks.*.cross_attn.*")
}

fn text_requirements(llama: &LlamaConfig) -> Requirements {
    require(Requirements::new(), keys::text(llama)).skip("layers.*.self_attn.rotary_emb.inv_freq")
}
