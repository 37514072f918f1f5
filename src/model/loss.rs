//! What training minimises: the trained heads with the loss of design (arXiv 2501.16282, section 3; CLIP's contrastive
//! term, Radford et al. 2021).
//!
//! ```text
//! L = CE(classifier(concat(v, t)), y) + w · ½ (CE(s v̂ t̂ᵀ, I) + CE(s t̂ v̂ᵀ, I)),   s = min(exp(logit_scale), 100)
//! ```
//!
//! v̂ and t̂ are v and t at length 1; the image-only mode has L = CE(image_classifier(v), y).

use super::heads::{linear, normalized};
use super::{Part, Weights, keys};
use crate::config::Config;
use crate::error::Result;
use crate::graph::{Builder, Dim, Graph, Op, ValueId};
use crate::tensor::{DType, LazyTensor};

/// Largest factor of the similarities.
pub const MAX_SCALE: f32 = 100.0;

/// Which parameters are trained, and with which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Trainable linear projections: adapter, both projections, classifier and `logit_scale`.
    Tlp,
    /// Fixed projection matrices: adapter and classifier; the loss is the same and flows through the fixed projections.
    Fpm,
    /// The image alone: adapter, vision projection and image-only classifier.
    Mri,
}

impl Mode {
    /// The name that files and commands use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tlp => "tlp",
            Self::Fpm => "fpm",
            Self::Mri => "mri",
        }
    }

    /// Whether the parameter of that state-dict key is trained.
    pub fn trains(self, key: &str) -> bool {
        let prefixes: &[&str] = match self {
            Self::Tlp => &["adapter.", "vision_projection.", "text_projection.", "classifier.", "logit_scale"],
            Self::Fpm => &["adapter.", "classifier."],
            Self::Mri => &["adapter.", "vision_projection.", "image_classifier."],
        };
        let statistic = [".running_mean", ".running_var", ".num_batches_tracked"].iter().any(|s| key.ends_with(s));
        !statistic && prefixes.iter().any(|p| key.starts_with(p))
    }

    /// Whether reports are read.
    pub const fn reads_reports(self) -> bool {
        !matches!(self, Self::Mri)
    }
}

/// The heads' parameters that a mode's loss reads, trained or not.
pub fn parameters(config: &Config, mode: Mode) -> Vec<keys::Key> {
    if mode == Mode::Mri {
        let heads = keys::heads(config).into_iter().filter(|(name, _)| name.starts_with("vision_projection."));
        return heads.chain(keys::image_classifier(config)).collect();
    }
    keys::heads(config).into_iter().chain([("logit_scale".to_owned(), vec![])]).collect()
}

/// The heads with the loss.
///
/// Inputs `vision` f32 `[batch, vision.hidden]`, `text` f32 `[batch, text.hidden]` (not in the mode `mri`) and `labels`
/// i64 `[batch]`; outputs `loss` f32 `[]`, `logits` f32 `[batch, labels]`, `v` and (not in `mri`) `t` f32 `[batch,
/// projection.dim]`. With `class_weights`, one a class, the classification loss is the mean weighted by the weights of
/// the labels, as PyTorch's `cross_entropy(weight=)` has it.
///
/// # Errors
/// `checkpoint.tensors` when a weight is missing or misshapen.
pub fn build(config: &Config, weights: &Weights, mode: Mode, class_weights: Option<&[f32]>) -> Result<Graph> {
    let mut g = Builder::new("loss");
    let batch = Dim::BATCH;
    let (d, classes) = (config.projection.dim, config.labels.0.len());
    let vision = g.input(Part::Vision.as_str(), DType::F32, &[batch, Dim::Known(config.vision.hidden)]);
    let text = mode
        .reads_reports()
        .then(|| g.input(Part::Text.as_str(), DType::F32, &[batch, Dim::Known(config.text.hidden)]));
    let labels = g.input("labels", DType::I64, &[batch]);
    let v = linear(&mut g, weights, vision, "vision_projection", [d, config.vision.hidden])?;
    let (logits, t) = match text {
        None => (linear(&mut g, weights, v, "image_classifier", [classes, d])?, None),
        Some(text) => {
            let t = linear(&mut g, weights, text, "text_projection", [d, config.text.hidden])?;
            let both = g.concat(&[v, t], 1)?;
            (linear(&mut g, weights, both, "classifier", [classes, 2 * d])?, Some(t))
        }
    };
    let mut loss = g.scope("classification", |g| classification(g, logits, labels, classes, class_weights))?;
    if let Some(t) = t {
        let scale = g.weight("logit_scale", weights.get("logit_scale", &[])?);
        let pairs = g.scope("contrastive", |g| contrastive(g, v, t, scale, labels))?;
        let weight = g.scalar(config.train.contrastive_weight as f32 * 0.5);
        let pairs = g.mul(pairs, weight)?;
        loss = g.add(loss, pairs)?;
    }
    g.output("loss", loss)?;
    g.output("logits", logits)?;
    g.output("v", v)?;
    t.map_or(Ok(()), |t| g.output("t", t))?;
    g.finish()
}

/// Cross entropy of `logits` `[batch, classes]`.
fn classification(
    g: &mut Builder,
    logits: ValueId,
    labels: ValueId,
    classes: usize,
    class_weights: Option<&[f32]>,
) -> Result<ValueId> {
    let all = g.ints(&(0..classes as i64).collect::<Vec<_>>());
    let label = g.unsqueeze(labels, &[1])?;
    let hit = g.binary("Equal", label, all)?;
    let hit = g.cast(hit, DType::F32)?;
    let entropy = picked(g, logits, hit)?;
    let Some(class_weights) = class_weights else { return mean(g, entropy) };
    let class_weights = g.weight("class_weights", LazyTensor::from_f32(&[classes], class_weights));
    let weight = g.mul(hit, class_weights)?;
    let weight = g.reduce_sum(weight, &[1], false)?;
    let weighted = g.mul(entropy, weight)?;
    let [sum, total] = [weighted, weight].map(|x| g.reduce_sum(x, &[0], false));
    g.div(sum?, total?)
}

/// CE(s v̂ t̂ᵀ, I) + CE(s t̂ v̂ᵀ, I) over the batch.
fn contrastive(g: &mut Builder, v: ValueId, t: ValueId, logit_scale: ValueId, labels: ValueId) -> Result<ValueId> {
    let scale = g.unary("Exp", logit_scale)?;
    let most = g.scalar(MAX_SCALE);
    let scale = g.binary("Min", scale, most)?;
    let (v, t) = (normalized(g, v)?, normalized(g, t)?);
    let t = g.transpose(t, &[1, 0])?;
    let cosines = g.matmul(v, t)?;
    let similarities = g.mul(cosines, scale)?;
    let own = identity(g, labels)?;
    let rows = picked(g, similarities, own)?;
    let turned = g.transpose(similarities, &[1, 0])?;
    let columns = picked(g, turned, own)?;
    let both = g.add(rows, columns)?;
    mean(g, both)
}

/// Row by row −log softmax(x) where `hit` is 1: `[batch, n]` → `[batch]`.
fn picked(g: &mut Builder, x: ValueId, hit: ValueId) -> Result<ValueId> {
    let logs = g.node(Op::new("LogSoftmax").int("axis", -1), &[Some(x)])?;
    let picked = g.mul(logs, hit)?;
    let sum = g.reduce_sum(picked, &[1], false)?;
    g.unary("Neg", sum)
}

fn mean(g: &mut Builder, x: ValueId) -> Result<ValueId> {
    g.reduce_mean(x, &[0], false)
}

/// `[batch, batch]`: 1 on the diagonal.
fn identity(g: &mut Builder, labels: ValueId) -> Result<ValueId> {
    let size = g.node(Op::new("Shape"), &[Some(labels)])?;
    let size = g.squeeze(size, &[0])?;
    let [start, step] = [0, 1].map(|i| g.weight("const.int", LazyTensor::from_i64(&[], &[i])));
    let numbers = g.node(Op::new("Range"), &[Some(start), Some(size), Some(step)])?;
    let numbers = g.declare(numbers, &[Dim::BATCH])?;
    let [rows, columns] = [1, 0].map(|axis| g.unsqueeze(numbers, &[axis]));
    let same = g.binary("Equal", rows?, columns?)?;
    g.cast(same, DType::F32)
}
