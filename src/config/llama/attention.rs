//! Who sees whom: causal or bidirectional attention, sliding windows, layers without rotary embeddings.

use serde_json::Value;

use super::json::{flag, found, optional_size, short, show};
use super::kinds::{Kind, Windows};
use super::variant::Window;
use crate::error::{Code, Error, Result, Warning, WarningCode};

/// Maximum width of a window in tokens.
const MAX_WINDOW: usize = 1 << 24;

/// Fields that say whether attention is causal, and what `true` means.
const CAUSAL: [(&str, bool); 9] = [
    ("is_causal", true),
    ("causal", true),
    ("use_causal_mask", true),
    ("causal_attention", true),
    ("use_bidirectional_attention", false),
    ("bidirectional_attention", false),
    ("bidirectional", false),
    ("is_bidirectional", false),
    ("use_bidirectional_mask", false),
];

/// Names of layer types, and whether they see a window alone.
const LAYER_TYPES: [(&str, bool); 4] =
    [("full_attention", false), ("attention", false), ("full", false), ("sliding_attention", true)];

/// Whether a field says that attention is causal.
pub(super) fn is_direction(field: &str) -> bool {
    CAUSAL.iter().any(|(name, _)| *name == field)
}

/// The parts of `model_type` that are not the base's name, and whether one of them says bidirectional:
/// `llama_bidirec` is a bidirectional `llama`.
pub(super) fn without_direction(model_type: &str) -> (String, bool) {
    let says = |part: &&str| part.starts_with("bidir") || *part == "bi";
    let rest: Vec<&str> = model_type.split(['_', '-']).filter(|part| !says(part)).collect();
    let bidirectional = model_type.split(['_', '-']).any(|part| says(&part));
    (if bidirectional { rest.join("_") } else { model_type.to_owned() }, bidirectional)
}

/// Whether a class's name says that it is bidirectional, as LLM2Vec's `LlamaBiModel` and `LlamaEncoderModel`.
pub(super) fn is_bidirectional_class(class: &str) -> bool {
    let lower = class.to_ascii_lowercase();
    let encoder = lower.contains("encoder") && !lower.contains("decoder");
    let words = encoder || ["bidir", "noncausal"].iter().any(|word| lower.contains(word));
    // `Bi` as a word of its own: a capital follows it.
    let bi = class.match_indices("Bi").any(|(at, _)| class[at + 2..].starts_with(|c: char| c.is_ascii_uppercase()));
    words || bi
}

/// The names of the classes that `architectures` and `auto_map` give.
///
/// # Errors
/// `config.syntax` when `architectures` is no list of names.
pub(super) fn classes(json: &Value) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    if let Some(list) = found(json, "architectures") {
        let names = list.as_array().map(|list| list.iter().map(|name| name.as_str().map(str::to_owned)));
        match names.and_then(Iterator::collect::<Option<Vec<_>>>) {
            Some(names) => all.extend(names),
            None => {
                let message = format!("architectures are {}, expected a list of names", show(list));
                return Err(Error::new(Code::CONFIG_SYNTAX, message));
            }
        }
    }
    let map = found(json, "auto_map").and_then(Value::as_object);
    let mapped = map.into_iter().flatten().filter(|(auto, _)| auto.starts_with("AutoModel"));
    // `repository--module.Class`, or a list of them.
    let one = |value: &Value| value.as_str().map(|path| path.rsplit('.').next().unwrap_or(path).to_owned());
    all.extend(mapped.filter_map(|(_, value)| one(value)));
    Ok(all)
}

/// Whether attention is bidirectional, and what to tell where only a name says so.
///
/// # Errors
/// `config.contradiction` when two fields disagree, or a field and a name; `config.unsupported` for a field that is
/// neither true nor false.
pub(super) fn bidirectional(json: &Value, classes: &[String]) -> Result<(bool, Option<Warning>)> {
    let mut said: Option<(&str, bool)> = None;
    for (field, causal) in CAUSAL {
        let Some(value) = found(json, field) else { continue };
        let Some(is) = value.as_bool() else {
            let message =
                format!("{field} is {}: attention is computed causal or bidirectional throughout", show(value));
            return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
        };
        let bidirectional = is != causal;
        match said {
            Some((other, before)) if before != bidirectional => {
                let message =
                    format!("{other} and {field} ({is}) disagree: one says causal attention, one bidirectional");
                return Err(Error::new(Code::CONFIG_CONTRADICTION, message));
            }
            _ => said = Some((field, bidirectional)),
        }
    }
    let model_type = found(json, "model_type").and_then(Value::as_str).unwrap_or("");
    let mut names = classes.iter().filter(|class| is_bidirectional_class(class)).map(String::as_str);
    let named = if without_direction(model_type).1 { Some(model_type) } else { names.next() };
    match (said, named) {
        (Some((field, false)), Some(name)) => {
            let message = format!("{field} says causal attention, {} says bidirectional: mend one", short(name));
            Err(Error::new(Code::CONFIG_CONTRADICTION, message))
        }
        (Some((field, true)), None) => Ok((true, warning(&format!("{field} says so")))),
        (_, Some(name)) if name != model_type => Ok((true, warning(&format!("{} is such a class", short(name))))),
        (said, named) => Ok((named.is_some() || said.is_some_and(|(_, bidirectional)| bidirectional), None)),
    }
}

fn warning(why: &str) -> Option<Warning> {
    let message = format!("attention is computed bidirectional, without a causal mask: {why}");
    Some(Warning::new(WarningCode::CONFIG_CHOICE, message))
}

/// Which layers see a window alone, where reports outgrow it; `tokens` is the longest report.
///
/// # Errors
/// `config.unsupported` for other layer types and for windows that the kind does not read, `config.contradiction` when
/// layers have a window of no width.
pub(super) fn window(
    json: &Value,
    kind: &Kind,
    layers: usize,
    nope: &[usize],
    tokens: Option<usize>,
) -> Result<Option<Window>> {
    let types = layer_types(json, layers)?;
    let width = width(json, kind)?;
    let outgrown = width.filter(|width| tokens.is_none_or(|tokens| *width < tokens));
    let chosen = match (kind.windows, &types) {
        (Windows::Never, Some(types)) if types.contains(&true) => return not_read(kind, json),
        (Windows::All, Some(types)) if outgrown.is_some() && types.contains(&false) => return not_read(kind, json),
        (Windows::All, Some(types)) if width.is_none() && types.contains(&true) => return not_read(kind, json),
        (Windows::Never, _) => vec![],
        (Windows::Types | Windows::Upper | Windows::Nope | Windows::Pattern, Some(types)) => {
            (0..layers).filter(|n| types[*n]).collect()
        }
        _ if width.is_none() => vec![],
        (Windows::Upper, None) => {
            let from = found(json, "max_window_layers").map_or(Some(28), Value::as_u64);
            let expected = || {
                let message = "max_window_layers is no whole number: it is the first layer with a sliding window";
                Error::new(Code::CONFIG_VALUE, message)
            };
            let from = usize::try_from(from.ok_or_else(expected)?).unwrap_or(usize::MAX);
            (from.min(layers)..layers).collect()
        }
        (Windows::Nope, None) => nope.to_vec(),
        (Windows::Pattern, None) => (0..layers).filter(|n| n % 4 != 0).collect(),
        (Windows::All | Windows::Types, _) => (0..layers).collect(),
    };
    match (chosen.is_empty(), width) {
        (true, _) => Ok(None),
        (false, Some(_)) => Ok(outgrown.map(|tokens| Window { tokens, layers: chosen })),
        (false, None) => {
            let message = "layer_types has sliding_attention, and sliding_window is off (null, or use_sliding_window is \
                           not true): they must agree";
            Err(Error::new(Code::CONFIG_CONTRADICTION, message))
        }
    }
}

/// The window's width, where the kind reads one and it is on.
fn width(json: &Value, kind: &Kind) -> Result<Option<usize>> {
    let on = match kind.windows {
        Windows::Never => false,
        Windows::Upper | Windows::Nope => flag(json, "use_sliding_window")?.unwrap_or(false),
        Windows::All | Windows::Types | Windows::Pattern => true,
    };
    match (on, json.get("sliding_window")) {
        (false, _) => Ok(None),
        (true, None) => Ok(kind.window),
        (true, Some(_)) => optional_size(json, "sliding_window", MAX_WINDOW),
    }
}

fn not_read<T>(kind: &Kind, json: &Value) -> Result<T> {
    let types = found(json, "layer_types").map(show).unwrap_or_default();
    let message = format!("layer_types are {types}: {} has no layers of two types", kind.name);
    Err(Error::new(Code::CONFIG_UNSUPPORTED, message))
}

/// For each layer, whether `layer_types` gives it a window.
fn layer_types(json: &Value, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = found(json, "layer_types") else { return Ok(None) };
    let list = types.as_array().filter(|list| list.len() == layers).ok_or_else(|| {
        let message = format!("layer_types are {}, expected a list of {layers}, one a layer", show(types));
        Error::new(Code::CONFIG_VALUE, message)
    })?;
    let one = |value: &Value| {
        let known = LAYER_TYPES.iter().find(|(name, _)| value.as_str() == Some(name)).map(|(_, windowed)| *windowed);
        known.ok_or_else(|| {
            let message = format!("layer_types has {}: computed are full_attention and sliding_attention", show(value));
            Error::new(Code::CONFIG_UNSUPPORTED, message)
        })
    };
    list.iter().map(one).collect::<Result<_>>().map(Some)
}

/// Layers without rotary embeddings.
///
/// # Errors
/// `config.value` when the list does not fit.
pub(super) fn nope_layers(json: &Value, kind: &Kind, layers: usize) -> Result<Vec<usize>> {
    if !kind.nope {
        return Ok(vec![]);
    }
    let field = "no_rope_layers";
    // 1 is a layer with rotary embeddings.
    if let Some(value) = found(json, field) {
        let has = |v: &Value| match v {
            Value::Bool(has) => Some(*has),
            other => other.as_u64().filter(|n| *n <= 1).map(|n| n == 1),
        };
        let list = value.as_array().filter(|list| list.len() == layers);
        let has: Option<Vec<bool>> = list.and_then(|list| list.iter().map(has).collect());
        let has = has.ok_or_else(|| {
            let message = format!("{field} are {}, expected {layers} times 0 or 1, one a layer", show(value));
            Error::new(Code::CONFIG_VALUE, message)
        })?;
        return Ok((0..layers).filter(|n| !has[*n]).collect());
    }
    let interval = optional_size(json, "no_rope_layer_interval", MAX_WINDOW)?.unwrap_or(4);
    Ok((0..layers).filter(|n| (n + 1).is_multiple_of(interval)).collect())
}
