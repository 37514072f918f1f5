//! Quantized checkpoints: integers and 8-bit floats become the weights that they stand for, or are refused by name.
//!
//! Flows in: names and tensors as the file has them, and the `quantization_config` beside it. Flows out: the same
//! tensors, where `X.weight` replaces what GPTQ, AWQ, FP8 or compressed-tensors made of it: lazily, in float32; and a
//! warning `checkpoint_dequantized`. Formulas stand in [`packed`] and [`float8`]. Everything else is recognized by
//! the names of its tensors, or by its configuration, and refused.
//!
//! # Errors
//! `checkpoint.quantized`: the method and the tensor, what does not fit, and the way out.

mod config;
mod float8;
mod formats;
mod packed;

use std::collections::BTreeMap;
use std::path::Path;

use super::names::shown;
use super::{Contents, Skipped};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::{DType, LazyTensor};
use config::Settings;

/// Last parts of names that only one method writes, its name, and what makes floats of its files.
const FOREIGN: &[(&str, &str, Option<&str>)] = &[
    ("SCB", "bitsandbytes to 8 bits", Some(TRANSFORMERS)),
    ("weight_format", "bitsandbytes to 8 bits", Some(TRANSFORMERS)),
    ("absmax", "bitsandbytes to 4 bits (nf4 or fp4)", Some(TRANSFORMERS)),
    ("quant_map", "bitsandbytes to 4 bits (nf4 or fp4)", Some(TRANSFORMERS)),
    ("W_q", "HQQ", None),
    ("weight_scales", "EETQ", None),
    ("weight_packed", "compressed-tensors to packed integers", None),
    ("weight_qdata", "torchao", None),
];
const TRANSFORMERS: &str = "load it with transformers, and model.dequantize() before save_pretrained";

/// Scales of activations and caches, which stay floats.
const ACTIVATIONS: [&str; 6] = ["input_scale", "input_scale_ub", "output_scale", "k_scale", "v_scale", "q_scale"];

/// Names of one checkpoint's tensors.
pub(super) type Tensors = BTreeMap<String, LazyTensor>;

/// Makes floats of what a formula describes, and refuses the rest of what is quantized.
///
/// # Errors
/// `checkpoint.quantized`.
pub(super) fn restore(mut contents: Contents, folder: Option<&Path>) -> Result<Contents> {
    let settings = folder.and_then(Settings::in_folder);
    foreign(&contents, settings.as_ref())?;
    let mut done: BTreeMap<String, usize> = BTreeMap::new();
    let packed = layers(&contents, "qweight");
    for layer in &packed {
        let kind = formats::packed(&mut contents, layer, settings.as_ref())?;
        *done.entry(kind).or_default() += 1;
    }
    for (layer, suffix) in scaled(&contents) {
        let kind = formats::scaled(&mut contents.tensors, &layer, suffix, settings.as_ref())?;
        *done.entry(kind).or_default() += 1;
    }
    leftovers(&contents, settings.as_ref())?;
    let plain = contents.tensors.values().filter(|t| is_float8(t.dtype())).count();
    if plain > 0 {
        done.insert("8-bit floats without scales".into(), plain);
    }
    if done.is_empty() {
        return Ok(contents);
    }
    let of_activations: Vec<String> =
        contents.tensors.keys().filter(|n| ACTIVATIONS.contains(&last(n))).cloned().collect();
    for name in of_activations {
        contents.tensors.remove(&name);
        contents.skipped.push(Skipped { name, why: "a scale of activations, which stay floats".into() });
    }
    let kinds: Vec<String> = done.into_iter().map(|(kind, n)| format!("{n} weights of {kind}")).collect();
    let message = format!(
        "{} were made float32, by the method's formula; where a float checkpoint is at hand, that is the better one",
        kinds.join(", ")
    );
    contents.warnings.push(Warning::new(WarningCode::CHECKPOINT_DEQUANTIZED, message));
    Ok(contents)
}

/// The error that says how the weights are quantized and what does not fit; the way out of every quantized file is the
/// one that it was made from.
pub(super) fn refuse(what: &str, way: Option<&str>) -> Error {
    let way = way.map_or_else(String::new, |way| format!(", or {way}"));
    let message = format!("{what}: use the original float checkpoint (fp16 or bf16), which it was made from{way}");
    Error::new(Code::CHECKPOINT_QUANTIZED, message)
}

/// What is known by a name alone.
fn foreign(contents: &Contents, settings: Option<&Settings>) -> Result<()> {
    let all = contents.tensors.keys().chain(contents.skipped.iter().map(|s| &s.name));
    let known = all.filter(|name| name.contains('.')).find_map(|name| {
        let end = last(name);
        let state = name.contains(".quant_state.") || end.starts_with("bitsandbytes__");
        let row = FOREIGN.iter().find(|(suffix, _, _)| *suffix == end || state && *suffix == "absmax")?;
        // These are names that a float may have as well.
        let integer = |name: &str| contents.tensors.get(name).is_some_and(|t| !t.dtype().is_float());
        let fits = match end {
            "W_q" | "weight_packed" | "weight_qdata" => integer(name),
            "weight_scales" => integer(name.strip_suffix("_scales")?),
            _ => true,
        };
        fits.then_some((name, row))
    });
    if let Some((name, (_, method, way))) = known {
        return Err(refuse(&format!("is quantized by {method} (`{}`)", shown(name)), *way));
    }
    let Some(settings) = settings else { return Ok(()) };
    let unread = contents.skipped.iter().find(|s| s.why.starts_with("a tensor of type "));
    match unread.filter(|s| ["weight", "scale"].iter().any(|part| last(&s.name).contains(part))) {
        Some(s) => {
            let what =
                format!("is quantized ({}, {}): `{}` is {}", settings.method, settings.file, shown(&s.name), s.why);
            Err(refuse(&what, None))
        }
        None => Ok(()),
    }
}

/// Quantized weights of which no formula is known here: integers, or 8-bit floats without their scales.
fn leftovers(contents: &Contents, settings: Option<&Settings>) -> Result<()> {
    let Some(settings) = settings else { return Ok(()) };
    let packed = |t: &LazyTensor| {
        let integer = matches!(t.dtype(), DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 | DType::U32);
        t.shape().len() >= 2 && (integer || is_float8(t.dtype()))
    };
    match contents.tensors.iter().find(|(_, tensor)| packed(tensor)) {
        Some((name, tensor)) => {
            let way = (settings.method == "bitsandbytes").then_some(TRANSFORMERS);
            let (method, file, name) = (&settings.method, settings.file, shown(name));
            let what = format!(
                "is quantized ({method}, says {file}): `{name}` is {tensor:?}, and nothing beside it that makes floats of \
                 it was found"
            );
            Err(refuse(&what, way))
        }
        None => Ok(()),
    }
}

/// The layers that have a tensor of that last part: names without it.
fn layers(contents: &Contents, suffix: &str) -> Vec<String> {
    let layer = |name: &String| Some(name.strip_suffix(suffix)?.strip_suffix('.')?.to_owned());
    contents.tensors.keys().filter_map(layer).collect()
}

/// Layers whose weight has a scale beside it, and how that is named.
fn scaled(contents: &Contents) -> Vec<(String, &'static str)> {
    let weight = |layer: &String| {
        let weight = contents.tensors.get(&format!("{layer}.weight"));
        weight.is_some_and(|w| is_float8(w.dtype()) || w.dtype() == DType::I8)
    };
    ["weight_scale", "weight_scale_inv"]
        .into_iter()
        .flat_map(|suffix| layers(contents, suffix).into_iter().filter(weight).map(move |layer| (layer, suffix)))
        .collect()
}

fn is_float8(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
