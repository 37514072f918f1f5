//! Checkpoints → the weights of the three models.
//!
//! Each model's tensors are found under the one prefix that all of them have; what belongs to other models in the same
//! file is skipped and listed, what is named like the model's own but fits nowhere is refused. Modules that neither the
//! model nor a training has are named in a warning.

use super::prefix::{self, Under, quoted};
use super::weights::floats;
use super::{Weights, keys, unknown};
use crate::checkpoint::{Checkpoint, Requirements};
use crate::config::{Config, LlamaConfig, Norm};
use crate::error::{Code, Error, Result, Warning};
use crate::tensor::LazyTensor;

/// First parts of the names that belong to the trained checkpoint.
const TRAINED: [&str; 6] =
    ["adapter.", "vision_projection.", "text_projection.", "classifier.", "image_classifier.", "logit_scale"];
/// First parts of the names that belong to the vision transformer.
const VISION: [&str; 4] = ["blocks.", "patch_embedding.", "norm.", "cls_token"];
/// First parts of the names that belong to the language model.
const TEXT: [&str; 3] = ["layers.", "embed_tokens.", "norm."];

/// How one of the models is saved.
struct Saved {
    /// First parts of the names that are its own.
    own: &'static [&'static str],
    /// Prefixes under which it is looked for first.
    prefixes: &'static [&'static str],
    /// What it is called.
    what: &'static str,
    /// How a user chooses among several prefixes.
    choose: &'static str,
    /// Whether it is trained, so that other modules in the file may be parts of it.
    whole: bool,
}

const ADAPTER: Saved = Saved {
    own: &TRAINED,
    prefixes: &[""],
    what: "the adapter model",
    choose: "choose one with --prefix",
    whole: true,
};
const ENCODER: Saved = Saved {
    own: &VISION,
    prefixes: &keys::VISION_PREFIXES,
    what: "the vision transformer",
    choose: "keep one of them in the file",
    whole: false,
};
const LANGUAGE: Saved = Saved {
    own: &TEXT,
    prefixes: &keys::TEXT_PREFIXES,
    what: "the language model",
    choose: "keep one of them in the file",
    whole: false,
};

/// The weights of all three models.
#[derive(Debug)]
pub struct Models {
    /// Adapter and heads, by state-dict key.
    pub trained: Weights,
    /// The vision transformer, by state-dict key without prefix.
    pub vision: Weights,
    /// The language model, by state-dict key without prefix.
    pub text: Weights,
    /// The factor of the contrastive loss, where the checkpoint has one: no graph reads it.
    pub logit_scale: Option<LazyTensor>,
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
    /// The checkpoint's tensors under the prefix of adapter and heads, named without it.
    pub checkpoint: Checkpoint,
    /// Whether there is an image-only classifier.
    pub image_head: bool,
    /// Names of the checkpoint's other tensors, each once, sorted.
    pub skipped: Vec<String>,
    /// What to know of the checkpoint.
    pub warnings: Vec<Warning>,
}

/// The vision transformer of a model.
#[derive(Debug)]
pub struct Vision {
    /// Its weights, by state-dict key without prefix.
    pub weights: Weights,
    /// Names of the checkpoint's other tensors.
    pub skipped: Vec<String>,
    /// What to know of the checkpoint.
    pub warnings: Vec<Warning>,
}

/// Finds adapter and heads in a checkpoint, by the shapes that `config` gives them, under whichever prefix they have.
///
/// # Errors
/// `checkpoint.tensors`, naming every missing, unexpected or wrong-shaped tensor with found and expected shape, or the
/// prefixes when there are several; `checkpoint.dtype` when weights are no floats.
pub fn trained(config: &Config, checkpoint: &Checkpoint) -> Result<Trained> {
    let found = pick(checkpoint, &ADAPTER, |view| trained_requirements(config, view))?;
    let Found { weights, view, mut skipped, warnings } = found;
    skipped.sort();
    skipped.dedup();
    if let Some(scale) = view.get("logit_scale") {
        floats([("logit_scale", scale)].into_iter()).map_err(|e| e.at(checkpoint.path()))?;
    }
    Ok(Trained { image_head: has_image_head(config, &weights), weights, checkpoint: view, skipped, warnings })
}

/// Finds the vision transformer in a checkpoint, under whichever prefix; also names the checkpoint's other tensors.
///
/// # Errors
/// As [`trained`].
pub fn vision(config: &Config, checkpoint: &Checkpoint) -> Result<Vision> {
    check_layers("vision.layers", config.vision.layers, checkpoint)?;
    let Found { weights, skipped, warnings, .. } = pick(checkpoint, &ENCODER, |_| vision_requirements(config))?;
    Ok(Vision { weights, skipped, warnings })
}

/// Whether a tensor of that name belongs to the trained part of a model, also where no graph reads it.
pub fn is_trained(name: &str) -> bool {
    TRAINED.iter().any(|prefix| name.starts_with(prefix))
}

fn has_image_head(config: &Config, weights: &Weights) -> bool {
    keys::image_classifier(config).iter().all(|(name, _)| weights.contains(name))
}

impl Models {
    /// Finds every tensor of the three models, or reports all that is wrong with all of them.
    ///
    /// # Errors
    /// As [`trained`].
    pub fn find(
        config: &Config,
        llama: &LlamaConfig,
        adapter: &Checkpoint,
        encoder: &Checkpoint,
        text: &Checkpoint,
    ) -> Result<Self> {
        check_layers("vision.layers", config.vision.layers, encoder)?;
        check_layers("the language model's number of layers", llama.layers, text)?;
        let trained = trained(config, adapter);
        let vision = vision(config, encoder);
        let text = pick(text, &LANGUAGE, |_| text_requirements(llama));
        let (trained, vision, text) = all(trained, vision, text)?;
        let mut skipped = [trained.skipped, vision.skipped, text.skipped].concat();
        skipped.sort();
        skipped.dedup();
        Ok(Self {
            logit_scale: trained.checkpoint.get("logit_scale").cloned(),
            image_head: trained.image_head,
            trained: trained.weights,
            vision: vision.weights,
            text: text.weights,
            skipped,
            warnings: [trained.warnings, vision.warnings, text.warnings].concat(),
        })
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

/// A model's tensors, and what is left of its checkpoint.
struct Found {
    weights: Weights,
    /// The checkpoint under the model's prefix.
    view: Checkpoint,
    skipped: Vec<String>,
    warnings: Vec<Warning>,
}

/// Finds the prefix of a model and picks its tensors. `requirements` are those of the names under a prefix: of none at
/// first, then of those that were found.
fn pick(checkpoint: &Checkpoint, saved: &Saved, requirements: impl Fn(&Checkpoint) -> Requirements) -> Result<Found> {
    let least = requirements(&checkpoint.subset(|_| false));
    let required: Vec<&str> = least.required().collect();
    let under = prefix::find(checkpoint, &required, saved.prefixes, saved.choose)?;
    let mut warnings: Vec<Warning> = checkpoint.warnings().to_vec();
    warnings.extend(under.warning(saved.what, saved.choose));
    let own = |name: &str| saved.own.iter().any(|own| name.starts_with(own));
    let mut skipped: Vec<String> = under.view.names().filter(|name| !own(name)).map(str::to_owned).collect();
    let picked = requirements(&under.view).pick(&under.view.subset(own));
    let picked = picked.map_err(|e| explained(&e, checkpoint, &under, &skipped).at(checkpoint.path()))?;
    let weights: Weights = picked.tensors.into_iter().collect();
    floats(weights.iter()).map_err(|e| e.at(checkpoint.path()))?;
    warnings.extend(unknown::warning(saved.what, others(checkpoint, &under, saved)));
    skipped.extend(picked.skipped);
    let warnings = warnings.iter().map(|warning| warning.at(checkpoint.path())).collect();
    Ok(Found { weights, view: under.view, skipped, warnings })
}

/// The tensors that may belong to modules that nobody knows: those next to the model's own and, of a trained model,
/// those outside its prefix, but for copies of it.
fn others<'a>(
    checkpoint: &'a Checkpoint,
    under: &'a Under,
    saved: &'a Saved,
) -> impl Iterator<Item = (&'a str, &'a LazyTensor)> {
    let own = |name: &str| saved.own.iter().any(|own| name.starts_with(own));
    let copied = |name: &str| under.copies.iter().any(|copy| !copy.is_empty() && name.starts_with(copy));
    let inside = under.view.iter().filter(move |(name, _)| !own(name));
    let outside = checkpoint.iter().filter(|(name, _)| saved.whole && !name.starts_with(&under.prefix));
    inside.chain(outside).filter(move |(name, _)| !copied(name))
}

/// What does not fit, with where it was looked for and what is there instead.
fn explained(error: &Error, checkpoint: &Checkpoint, under: &Under, skipped: &[String]) -> Error {
    let mut message = error.message().to_owned();
    if !under.prefix.is_empty() {
        message = format!("under `{}`: {message}", under.prefix);
    }
    if message.contains(" missing: ") {
        let names: Vec<String> =
            if under.held == 0 { checkpoint.names().map(str::to_owned).collect() } else { skipped.to_vec() };
        if !names.is_empty() {
            message = format!("{message}; found instead: {}", quoted(&names));
        }
    }
    Error::new(error.code(), message)
}

/// All three, or one error with what is wrong with each.
fn all<A, B, C>(a: Result<A>, b: Result<B>, c: Result<C>) -> Result<(A, B, C)> {
    let errors: Vec<&Error> = [a.as_ref().err(), b.as_ref().err(), c.as_ref().err()].into_iter().flatten().collect();
    if let [first, _, ..] = errors.as_slice() {
        let same = errors.iter().all(|e| e.code() == first.code());
        let code = if same { first.code() } else { Code::CHECKPOINT_TENSORS };
        let lines: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
        return Err(Error::new(code, lines.join("; and ")));
    }
    Ok((a?, b?, c?))
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
