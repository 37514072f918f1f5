//! LoRA in Meta's layout: `X.adaptor.A.weight [rank, inputs]` and `X.adaptor.B.weight [outputs, rank]` beside
//! `X.weight`, with `lora_args {rank, scale}` in `params.json`; the layer computes `W x + scale · B A x`.
//!
//! Flows in: one slice's tensors under Meta's names. Flows out: the same without adaptors, merged. Rows are still in
//! Meta's order, so that the rotary reordering moves those of W and B alike. int8 weights with `.scales` (Meta's
//! QLoRA and SpinQuant files) are refused.
//!
//! # Errors
//! `checkpoint.lora`, `checkpoint.quantized`.

use std::collections::BTreeMap;

use super::super::names::shown;
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::number::to_f32;
use crate::tensor::{DType, LazyTensor, show};

type Tensors = BTreeMap<String, LazyTensor>;

/// What `params.json` says beside the model's sizes.
#[derive(Default, serde::Deserialize)]
pub(in super::super) struct Extras {
    lora_args: Option<Args>,
}

#[derive(serde::Deserialize)]
struct Args {
    rank: usize,
    scale: f64,
}

/// Merges the adaptors of the single slice in `slices`.
pub(in super::super) fn merge(slices: &mut [&mut Tensors], extras: &Extras) -> Result<Option<Warning>> {
    if let Some((name, tensor)) = slices.iter().flat_map(|s| s.iter()).find(|(name, tensor)| quantized(name, tensor)) {
        let what = format!("is quantized by Meta's tools (`{}`, {tensor:?})", shown(name));
        return Err(super::super::quantized::refuse(&what, None));
    }
    let adaptors =
        |tensors: &Tensors| tensors.keys().filter(|name| name.contains(".adaptor.")).cloned().collect::<Vec<_>>();
    let Some(first) = slices.iter().find_map(|tensors| adaptors(tensors).into_iter().next()) else { return Ok(None) };
    let refuse = |what: &str| {
        let message = format!(
            "holds LoRA adaptors (`{}`), which cannot be merged here: {what}; merge them into the weights (W + scale · B A) \
             in Python, and save the result without them",
            shown(&first)
        );
        Error::new(Code::CHECKPOINT_LORA, message)
    };
    let Some(Args { rank, scale }) = &extras.lora_args else {
        return Err(refuse("params.json has no lora_args, which say their scale"));
    };
    let scale =
        Some(to_f32(*scale)).filter(|scale| scale.is_finite()).ok_or_else(|| refuse("the scale is no float32"))?;
    let [tensors] = slices else { return Err(refuse("there are several slices of the model")) };
    let mut merged = 0usize;
    for name in adaptors(tensors) {
        let Some(a) = tensors.remove(&name) else { continue };
        let layer = name.strip_suffix(".adaptor.A.weight");
        let Some(layer) = layer else {
            // Every B has its A before it.
            return Err(refuse(&format!("`{}` stands without adaptor.A", shown(&name))));
        };
        let (key_b, key) = (format!("{layer}.adaptor.B.weight"), format!("{layer}.weight"));
        let (Some(b), Some(weight)) = (tensors.remove(&key_b), tensors.get(&key)) else {
            return Err(refuse(&format!("`{}` stands without adaptor.B or without a weight", shown(&name))));
        };
        let fits = match (weight.shape(), a.shape(), b.shape()) {
            (&[m, n], &[r, inputs], &[outputs, k]) => *rank > 0 && (r, k, inputs, outputs) == (*rank, *rank, n, m),
            _ => false,
        };
        if !fits || [&a, &b, weight].iter().any(|t| !t.dtype().is_float()) {
            let [weight, a, b] = [weight, &a, &b].map(|t| format!("{}{}", t.dtype(), show(t.shape())));
            let what = format!("the weight is {weight}, adaptor.A {a}, adaptor.B {b} and the rank {rank}");
            return Err(refuse(&what));
        }
        let (a, b) = (a.checked_finite(&shown(&name)), b.checked_finite(&shown(&key_b)));
        let sum = weight.plus_low_rank(&b, &a, scale);
        tensors.insert(key, sum);
        merged += 1;
    }
    let message = format!("LoRA adaptors were merged into {merged} tensors (rank {rank}, scale {scale})");
    Ok(Some(Warning::new(WarningCode::CHECKPOINT_MERGED, message)))
}

/// Whether a tensor is one of Meta's integers or their scales.
fn quantized(name: &str, tensor: &LazyTensor) -> bool {
    let small = matches!(tensor.dtype(), DType::I8 | DType::U8) && tensor.shape().len() == 2;
    name.ends_with(".scales") || small && name.ends_with(".weight")
}
