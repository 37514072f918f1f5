//! Which tensors of a checkpoint belong to modules that nobody knows.
//!
//! Flows in: names that no part of the model has, with their tensors. Flows out: the modules that may change what is
//! computed and are not: the export leaves them out, and whoever exports should know.
//!
//! Known, and only counted: the frozen parts under their usual names or with the names that their layers have; metrics,
//! losses, optimizers and averages of a training; counters and other tensors that are no float or have no axis.

use std::collections::BTreeMap;

use super::prefix::quoted;
use crate::error::{Warning, WarningCode};
use crate::tensor::LazyTensor;

/// Modules that hold a frozen part, or a part of the models that those come from.
const FROZEN: &[&str] = &[
    "audio_tower",
    "bert",
    "clip",
    "frozen",
    "image_encoder",
    "image_model",
    "image_newline",
    "image_tower",
    "language",
    "language_encoder",
    "language_model",
    "language_tower",
    "llama",
    "llm",
    "lm",
    "lm_head",
    "m3d",
    "m3d_clip",
    "multi_modal_projector",
    "rotary_emb",
    "seg_module",
    "seg_projector",
    "text",
    "text_encoder",
    "text_model",
    "text_tower",
    "tokenizer",
    "vision",
    "vision_encoder",
    "vision_model",
    "vision_tower",
    "visual",
    "visual_encoder",
    "vit",
];
/// Words of the names of what a training keeps next to its model.
const TRAINING: &[&str] = &[
    "acc",
    "accuracy",
    "auc",
    "auroc",
    "avg",
    "confmat",
    "confusion",
    "criterion",
    "ema",
    "f1",
    "kappa",
    "loss",
    "losses",
    "mcc",
    "meter",
    "metric",
    "metrics",
    "optim",
    "optimizer",
    "precision",
    "recall",
    "scaler",
    "scheduler",
    "score",
    "scores",
    "sensitivity",
    "shadow",
    "specificity",
    "swa",
    "teacher",
];
/// Buffers of losses that stand among a module's own tensors.
const BUFFERS: &[&str] = &["class_weight", "class_weights", "pos_weight", "logit_scale", "logit_bias"];
/// Last parts of the names of torchmetrics' states.
const STATES: &[&str] =
    &["tp", "fp", "tn", "fn", "correct", "total", "confmat", "preds", "target", "mean_value", "value"];
/// Pieces of names that only the layers of a vision transformer or a language model have.
const LAYERS: &[&str] = &[
    "patch_embedding.",
    "blocks.0.",
    "layers.0.self_attn.",
    "layers.0.attention.",
    "layer.0.attention.",
    "embed_tokens.",
    "cls_token",
];

/// The warning that names the modules that are not known; `what` is the model that does not have them.
pub(super) fn warning<'a>(what: &str, tensors: impl Iterator<Item = (&'a str, &'a LazyTensor)>) -> Option<Warning> {
    let mut modules: BTreeMap<&str, Vec<(&str, &LazyTensor)>> = BTreeMap::new();
    for (name, tensor) in tensors {
        modules.entry(name.split('.').next().unwrap_or(name)).or_default().push((name, tensor));
    }
    modules.retain(|module, tensors| !is_known(module, tensors));
    if modules.is_empty() {
        return None;
    }
    let row = |(module, tensors): (&&str, &Vec<(&str, &LazyTensor)>)| match tensors.as_slice() {
        [(name, _)] => (*name).to_owned(),
        _ => format!("{module}.*"),
    };
    let count: usize = modules.values().map(Vec::len).sum();
    let (noun, names) = (if count == 1 { "tensor" } else { "tensors" }, modules.iter().map(row).collect::<Vec<_>>());
    let message = format!(
        "{count} {noun} of modules that {what} does not have: {}; they are left out, and if they take part in the \
         computation, the result is another",
        quoted(&names)
    );
    Some(Warning::new(WarningCode::CHECKPOINT_UNKNOWN, message))
}

fn is_known(module: &str, tensors: &[(&str, &LazyTensor)]) -> bool {
    let lower = module.to_ascii_lowercase();
    let words = || lower.split(|c: char| !c.is_ascii_alphanumeric());
    let named = FROZEN.contains(&lower.as_str()) || BUFFERS.contains(&lower.as_str()) || lower.starts_with("mm_");
    if named || words().any(|word| TRAINING.contains(&word)) {
        return true;
    }
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let counts = |(name, tensor): &(&str, &LazyTensor)| {
        !tensor.dtype().is_float()
            || tensor.shape().is_empty()
            || (name.contains('.') && STATES.contains(&last(name).as_str()))
            || last(name) == "inv_freq"
    };
    tensors.iter().all(counts)
        || tensors
            .iter()
            .any(|(name, _)| LAYERS.iter().any(|layer| name.contains(&format!(".{layer}")) || name.starts_with(layer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn modules_are_known_or_told() {
        let float = LazyTensor::zeros(&[3]);
        let scalar = LazyTensor::zeros(&[]);
        let flags = LazyTensor::new(DType::Bool, vec![2], std::sync::Arc::new(vec![0u8, 1]));
        for (name, tensor, told) in [
            ("gate.weight", &float, true),
            ("cross_attention.q_proj.weight", &float, true),
            ("position_bias", &float, true),
            ("val_proj.weight", &float, true),
            ("embed_positions.weight", &float, true),
            ("train_acc.correct", &float, false),
            ("val_MulticlassAUROC.preds", &float, false),
            ("criterion.weight", &float, false),
            ("class_weights", &float, false),
            ("llama.model.norm.weight", &float, false),
            ("backbone.blocks.0.norm1.weight", &float, false),
            ("tower.model.layers.0.self_attn.q_proj.weight", &float, false),
            ("model_ema.adapterreduce", &float, false),
            ("n_averaged", &scalar, false),
            ("mask", &flags, false),
            ("rotary_emb.inv_freq", &float, false),
            ("mm_projector.0.weight", &float, false),
        ] {
            let found = warning("the model", [(name, tensor)].into_iter());
            assert_eq!(found.is_some(), told, "{name}");
            assert!(found.is_none_or(|w| w.message.contains(name) && w.code == WarningCode::CHECKPOINT_UNKNOWN));
        }
    }
}
