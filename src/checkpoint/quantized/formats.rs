//! Layers of GPTQ, AWQ, FP8 and compressed-tensors: their tensors and settings compared, then replaced by the weight.
//!
//! Flows in: a layer's name, the tensors, the settings. Flows out: `layer.weight` in place of what was stored, and the
//! name of what it was. What a formula needs must be said: nothing is guessed.
//!
//! # Errors
//! `checkpoint.quantized`.

use serde_json::Value;

use super::super::names::shown;
use super::config::Settings;
use super::float8::{Blocks, by_row};
use super::packed::{Layout, Packed};
use super::{Contents, Skipped, Tensors, is_float8, refuse};
use crate::error::{Error, Result};
use crate::tensor::number::to_usize;
use crate::tensor::{DType, LazyTensor, show};

/// Takes the packed tensors of `layer` and puts its weight there.
pub(super) fn packed(contents: &mut Contents, layer: &str, settings: Option<&Settings>) -> Result<String> {
    let Some(settings) = settings else {
        let what = format!(
            "is quantized by GPTQ or AWQ (`{}.qweight`), and no quantization_config of a config.json beside it says how",
            shown(layer)
        );
        return Err(refuse(&what, None));
    };
    let (layout, bits, group_size) = match settings.method.as_str() {
        "gptq" => gptq(settings)?,
        "awq" => awq(settings)?,
        other => {
            let what = format!("is quantized by {other} (`{}.qweight`)", shown(layer));
            return Err(refuse(&what, None));
        }
    };
    let kind = format!("{} ({bits} bits, group_size {group_size})", settings.method.to_uppercase());
    let wrong = |what: String| refuse(&format!("is quantized by {kind}: {what}, which does not fit"), None);
    let mut take = |part: &str| contents.tensors.remove(&format!("{layer}.{part}"));
    let (words, zeros, scales, groups) = (take("qweight"), take("qzeros"), take("scales"), take("g_idx"));
    let (Some(words), Some(zeros), Some(scales)) = (words, zeros, scales) else {
        return Err(wrong(format!("`{}` lacks qzeros or scales", shown(layer))));
    };
    let mut made = shapes(layer, layout, bits, group_size, [&words, &zeros, &scales]).map_err(&wrong)?;
    let trivial = |i: usize, group: u32| to_usize(group) == i / made.group_size;
    let groups = match groups.filter(|t| !t.is_empty()) {
        Some(tensor) => group_numbers(layer, &tensor, made.inputs, scales.shape()[0]).map_err(&wrong)?,
        None => Vec::new(),
    };
    if !groups.iter().enumerate().all(|(i, &group)| trivial(i, group)) {
        if !settings.on("desc_act") {
            let name = shown(layer);
            return Err(wrong(format!("`{name}.g_idx` reorders the groups although desc_act does not say so")));
        }
        made.groups = Some(groups.into());
    }
    let bias = format!("{layer}.bias");
    // GPTQ's first tools wrote one for every layer.
    if let Some(tensor) = contents.tensors.get(&bias)
        && tensor.to_f32()?.iter().all(|v| *v == 0.0)
    {
        contents.tensors.remove(&bias);
        contents.skipped.push(Skipped { name: bias, why: "a bias of zeros".into() });
    }
    put(&mut contents.tensors, layer, made.weight())?;
    Ok(kind)
}

fn put(tensors: &mut Tensors, layer: &str, weight: LazyTensor) -> Result<()> {
    match tensors.insert(format!("{layer}.weight"), weight) {
        None => Ok(()),
        Some(_) => Err(refuse(&format!("is quantized, and `{}` has a plain weight as well", shown(layer)), None)),
    }
}

fn lacks(method: &str, file: &str, setting: &str) -> Error {
    refuse(&format!("is quantized by {method}, and {file} does not say its {setting}"), None)
}

/// Layout, bits and group size (0: one group) of GPTQ.
fn gptq(settings: &Settings) -> Result<(Layout, usize, usize)> {
    let format = settings.text("checkpoint_format").unwrap_or_else(|| "gptq".into());
    let less_one = match format.as_str() {
        "gptq" => true,
        "gptq_v2" => false,
        other => return Err(refuse(&format!("is quantized by GPTQ, in the layout `{other}`"), None)),
    };
    if let Some(on) = ["is_marlin_format", "dynamic", "use_qalora"].iter().find(|name| settings.on(name)) {
        return Err(refuse(&format!("is quantized by GPTQ with the setting `{on}`, which is not read"), None));
    }
    let (bits, group_size) = bits_and_groups("GPTQ", settings, &[2, 3, 4, 8])?;
    Ok((Layout::Gptq { less_one }, bits, group_size))
}

/// Layout, bits and group size (0: one group) of AWQ.
fn awq(settings: &Settings) -> Result<(Layout, usize, usize)> {
    let version = settings.text("version").ok_or_else(|| lacks("AWQ", settings.file, "version (gemm?)"))?;
    if version != "gemm" {
        return Err(refuse(&format!("is quantized by AWQ, in the layout `{version}`; gemm is read"), None));
    }
    if settings.get("zero_point").and_then(Value::as_bool) != Some(true) {
        return Err(refuse("is quantized by AWQ without zero_point", None));
    }
    let (bits, group_size) = bits_and_groups("AWQ", settings, &[4])?;
    Ok((Layout::Awq, bits, group_size))
}

fn bits_and_groups(method: &str, settings: &Settings, known: &[usize]) -> Result<(usize, usize)> {
    let bits = settings.number(&["bits", "w_bit"]).ok_or_else(|| lacks(method, settings.file, "bits"))?;
    let Some(bits) = usize::try_from(bits).ok().filter(|bits| known.contains(bits)) else {
        return Err(refuse(&format!("is quantized by {method} to {bits} bits; {known:?} are read"), None));
    };
    let size = settings.number(&["group_size", "q_group_size"]);
    let size = size.ok_or_else(|| lacks(method, settings.file, "group_size"))?;
    match usize::try_from(size) {
        Ok(size) if size > 0 => Ok((bits, size)),
        _ if size == -1 => Ok((bits, 0)),
        _ => Err(refuse(&format!("is quantized by {method} in groups of {size} inputs"), None)),
    }
}

/// Compares the shapes of a packed layer; the error says what does not fit.
fn shapes(
    layer: &str,
    layout: Layout,
    bits: usize,
    group_size: usize,
    [words, zeros, scales]: [&LazyTensor; 3],
) -> std::result::Result<Packed, String> {
    let name = shown(layer);
    let (&[rows, cols], DType::I32) = (words.shape(), words.dtype()) else {
        return Err(format!("`{name}.qweight` is {words:?}, expected a matrix of int32"));
    };
    let whole = |n: usize| n.checked_mul(32).filter(|n| n.is_multiple_of(bits)).map(|n| n / bits);
    let sizes = match layout {
        Layout::Gptq { .. } => whole(rows).map(|inputs| (inputs, cols)),
        Layout::Awq => whole(cols).map(|outputs| (rows, outputs)),
    };
    let Some((inputs, outputs)) = sizes.filter(|&(n, m)| n > 0 && m > 0 && (m * bits).is_multiple_of(32)) else {
        return Err(format!(
            "`{name}.qweight` has shape {}, no whole number of words of {bits} bits",
            show(words.shape())
        ));
    };
    let group_size = if group_size == 0 { inputs } else { group_size };
    let groups = inputs.div_ceil(group_size);
    let expected = [("scales", scales, vec![groups, outputs]), ("qzeros", zeros, vec![groups, outputs * bits / 32])];
    for (part, tensor, shape) in expected {
        let kind = if part == "scales" { tensor.dtype().is_float() } else { tensor.dtype() == DType::I32 };
        if tensor.shape() != shape || !kind {
            let (inputs, expected) = (format!("{inputs} inputs, {outputs} outputs"), show(&shape));
            return Err(format!("`{name}.{part}` is {tensor:?}, expected {expected} ({inputs})"));
        }
    }
    let (words, zeros, scales) = (words.clone(), zeros.clone(), scales.clone());
    Ok(Packed { layout, bits, inputs, outputs, group_size, groups: None, words, zeros, scales, by_input: false })
}

/// Each input's group, below the number of groups.
fn group_numbers(
    layer: &str,
    tensor: &LazyTensor,
    inputs: usize,
    groups: usize,
) -> std::result::Result<Vec<u32>, String> {
    let name = shown(layer);
    if tensor.dtype() != DType::I32 || tensor.shape() != [inputs] {
        return Err(format!("`{name}.g_idx` is {tensor:?}, expected int32[{inputs}]"));
    }
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let numbers: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    match numbers.iter().find(|group| to_usize(**group) >= groups) {
        Some(group) => Err(format!("`{name}.g_idx` names the group {group} of {groups}")),
        None => Ok(numbers),
    }
}

/// Replaces an 8-bit weight and its scale by their product.
pub(super) fn scaled(tensors: &mut Tensors, layer: &str, suffix: &str, settings: Option<&Settings>) -> Result<String> {
    let (name, of_scale) = (format!("{layer}.weight"), format!("{layer}.{suffix}"));
    let (Some(weight), Some(scale)) = (tensors.remove(&name), tensors.remove(&of_scale)) else {
        return Err(refuse(&format!("is quantized, and `{}` has two scales", shown(layer)), None));
    };
    let dtype = weight.dtype();
    let what = format!("is quantized to {dtype} (`{}`)", shown(&name));
    let wrong = |message: &str| refuse(&format!("{what}: {message}"), None);
    let Some(settings) = settings else {
        return Err(wrong("no quantization_config of a config.json beside it says what its scales are"));
    };
    let (&[rows, cols], true) = (weight.shape(), scale.dtype().is_float() && !is_float8(scale.dtype())) else {
        return Err(wrong(&format!("it is {weight:?} and its scale {scale:?}, expected a matrix and a float")));
    };
    if tensors.contains_key(&format!("{layer}.weight_zero_point")) {
        return Err(wrong("it has a weight_zero_point, which is not read"));
    }
    let block = block_of(settings, suffix, dtype).map_err(|message| wrong(&message))?;
    let [m, n] = block.unwrap_or([rows, cols]);
    let of_blocks = [rows.div_ceil(m), cols.div_ceil(n)];
    let made = match (block, scale.shape()) {
        (Some(block), shape) if is_float8(dtype) && shape == of_blocks => Blocks::weight(weight, scale, block),
        (None, [] | [1]) => by_row(&weight, &scale)?,
        (None, [m] | [m, 1]) if *m == rows => by_row(&weight, &scale)?,
        (_, found) => {
            let expected = block.map_or_else(|| format!("one scale, or {rows}"), |_| show(&of_blocks));
            let (found, shape) = (show(found), show(&[rows, cols]));
            let blocks = block.map_or_else(String::new, |b| format!(" in blocks of {}", show(&b)));
            let message = format!("`{}` has shape {found}, expected {expected} of {shape}{blocks}", shown(&of_scale));
            return Err(wrong(&message));
        }
    };
    tensors.insert(name, made);
    Ok(format!("{dtype} ({})", settings.method))
}

/// The block that a scale is for, or none for one of the tensor or of each row; the error says what is not said.
fn block_of(settings: &Settings, suffix: &str, dtype: DType) -> std::result::Result<Option<[usize; 2]>, String> {
    let file = settings.file;
    match (settings.method.as_str(), suffix) {
        ("fp8", "weight_scale_inv") => match settings.json.get("weight_block_size") {
            Some(Value::Null) => Ok(None),
            Some(size) => block(size).map(Some),
            None => Err(format!("{file} does not say the weight_block_size of its weight_scale_inv")),
        },
        ("fp8", _) if settings.text("activation_scheme").is_some() => Ok(None),
        ("fp8", _) => Err(format!("{file} has no activation_scheme: which tool's `fp8` it is, is not said")),
        ("fbgemm_fp8", "weight_scale") => Ok(None),
        ("compressed-tensors", "weight_scale") => compressed(settings, dtype),
        (method, _) => Err(format!("the method is `{method}` ({file}), whose scales are not read")),
    }
}

fn block(size: &Value) -> std::result::Result<[usize; 2], String> {
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1 << 20).contains(n));
    match size.as_array().map(Vec::as_slice) {
        Some([rows, cols]) => number(rows).zip(number(cols)).map(|(rows, cols)| [rows, cols]),
        _ => None,
    }
    .ok_or_else(|| "its block size is not two numbers".to_owned())
}

/// What compressed-tensors says of its weights; all groups must say the same.
fn compressed(settings: &Settings, dtype: DType) -> std::result::Result<Option<[usize; 2]>, String> {
    let format = settings.text("format").unwrap_or_default();
    let known = match dtype {
        DType::I8 => ["int-quantized", "naive-quantized"],
        _ => ["float-quantized", "naive-quantized"],
    };
    if !known.contains(&format.as_str()) {
        return Err(format!("compressed-tensors' format `{format}` is not read; {} is", known[0]));
    }
    if settings.on("transform_config") {
        return Err("compressed-tensors' transform_config is not read".into());
    }
    let groups = settings.get("config_groups").and_then(Value::as_object);
    let weights: Vec<&Value> = groups.into_iter().flat_map(|g| g.values()).filter_map(|g| g.get("weights")).collect();
    let Some((first, rest)) = weights.split_first() else {
        return Err("its config_groups say nothing of weights".into());
    };
    if rest.iter().any(|other| other != first) {
        return Err("its config_groups differ".into());
    }
    let symmetric = first.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    match first.get("strategy").and_then(Value::as_str).unwrap_or_default() {
        "tensor" | "channel" if symmetric => Ok(None),
        "block" if symmetric => block(first.get("block_structure").unwrap_or(&Value::Null)).map(Some),
        other => Err(format!("the strategy `{}` (symmetric: {symmetric}) is not read", shown(other))),
    }
}
