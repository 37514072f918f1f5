//! The update of each module, added to the weight that it is for.
//!
//! Flows in: a model's tensors and an adapter's, by names without PEFT's prefix. Flows out: the tensors with
//! `W + s·B·A` for each module, and trained copies in place of the originals. Sums are float32, whatever the weight's
//! dtype: PEFT's for a model that is loaded in float32. For one in half precision PEFT rounds them to that.
//!
//! The names of both may differ by what stands in front (`model.`, `language_model.`): the one change that finds all
//! modules is taken. A module that the model does not have is an error; heads of the language model, which nothing
//! here computes, are passed over where they are missing.

use std::collections::BTreeMap;

use super::super::names::shown;
use super::config::Config;
use super::refuse;
use super::{Contents, Factor, Skipped};
use crate::error::Result;
use crate::tensor::{LazyTensor, show};

/// Modules whose absence changes nothing that is computed here.
const HEADS: [&str; 4] = ["lm_head", "score", "classifier", "v_head"];
/// Most prefixes of the model's names that are tried.
const MAX_PREFIXES: usize = 16;

/// The factors of one module's update, with their names.
pub(super) struct Update {
    /// The adapter's name.
    pub adapter: String,
    pub factors: BTreeMap<Factor, (String, LazyTensor)>,
}

/// Updates by module.
pub(super) type Modules = BTreeMap<String, Update>;

type Tensors = BTreeMap<String, LazyTensor>;

/// How an adapter's names become the model's: so many leading characters go, and a prefix comes in front.
#[derive(Clone, Debug, Default)]
pub(super) struct Align {
    strip: String,
    prefix: String,
    /// How many modules were found.
    pub found: usize,
}

impl Align {
    /// The model's name of an adapter's.
    pub fn name(&self, name: &str) -> Option<String> {
        name.strip_prefix(&self.strip).map(|rest| format!("{}{rest}", self.prefix))
    }
}

/// Finds the change of names under which the model has most of the modules (or, without modules, of the tensors).
pub(super) fn align(model: &Tensors, modules: &Modules, plain: &Tensors) -> Align {
    let weights = modules.keys().map(|module| format!("{module}.weight"));
    let wanted: Vec<String> = if modules.is_empty() { plain.keys().cloned().collect() } else { weights.collect() };
    let wanted: Vec<&String> = wanted.iter().filter(|name| !is_head(name)).collect();
    let Some(first) = wanted.first() else { return Align::default() };
    let count = |align: &Align| {
        wanted.iter().filter(|name| align.name(name).is_some_and(|name| model.contains_key(&name))).count()
    };
    let mut best = Align::default();
    let starts = std::iter::once(0).chain(first.match_indices('.').map(|(at, _)| at + 1));
    for start in starts.take(MAX_PREFIXES) {
        let (strip, rest) = first.split_at(start);
        // The last component alone is every layer's.
        if !rest.contains('.') {
            break;
        }
        let prefixes = model.keys().filter_map(|name| name.strip_suffix(rest));
        let prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        for prefix in prefixes.take(MAX_PREFIXES) {
            let mut align = Align { strip: strip.to_owned(), prefix: prefix.to_owned(), found: 0 };
            align.found = count(&align);
            if align.found > best.found {
                best = align;
            }
        }
        if best.found == wanted.len() {
            break;
        }
    }
    best
}

fn is_head(name: &str) -> bool {
    name.split('.').any(|part| HEADS.contains(&part)) && !name.contains(".layers.")
}

/// How many tensors were changed.
#[derive(Default)]
pub(super) struct Done {
    pub merged: usize,
    pub replaced: usize,
}

/// Adds every update, and puts the trained copies in place.
pub(super) fn into(
    contents: &mut Contents,
    modules: Modules,
    plain: Tensors,
    config: &Config,
    align: &Align,
) -> Result<Done> {
    let mut done = Done::default();
    for (name, tensor) in plain {
        let own = align.name(&name).filter(|own| contents.tensors.contains_key(own));
        let own = own.or_else(|| contents.tensors.contains_key(&name).then(|| name.clone()));
        match own {
            Some(own) => {
                contents.tensors.insert(own, tensor);
                done.replaced += 1;
            }
            None => missing(contents, &name, &name)?,
        }
    }
    for (module, update) in modules {
        let own = align.name(&module).filter(|own| contents.tensors.contains_key(&format!("{own}.weight")));
        let example = update.factors.values().next().map_or(module.as_str(), |(name, _)| name.as_str()).to_owned();
        let Some(own) = own else {
            missing(contents, &module, &example)?;
            continue;
        };
        one(&mut contents.tensors, &own, &module, update, config)?;
        done.merged += 1;
    }
    Ok(done)
}

/// What the model does not have: an error, but for heads.
fn missing(contents: &mut Contents, module: &str, name: &str) -> Result<()> {
    if is_head(module) {
        contents.skipped.push(Skipped { name: name.to_owned(), why: "LoRA of a head that is not used".into() });
        return Ok(());
    }
    Err(refuse(format!("`{}` is for a module that the model does not have", shown(name))))
}

/// Adds one module's update to the weight of `own`.
fn one(tensors: &mut Tensors, own: &str, module: &str, mut update: Update, config: &Config) -> Result<()> {
    let (rank, scale) = config.of(module)?;
    let embedding =
        update.factors.contains_key(&Factor::EmbeddingA) || update.factors.contains_key(&Factor::EmbeddingB);
    let pair = if embedding { [Factor::EmbeddingB, Factor::EmbeddingA] } else { [Factor::B, Factor::A] };
    let [b, a] = pair.map(|factor| update.factors.remove(&factor));
    let (Some((name_b, b)), Some((name_a, a))) = (b, a) else {
        return Err(refuse(format!("module `{}` has one of lora_A and lora_B, not both", shown(module))));
    };
    let key = format!("{own}.weight");
    let Some(weight) = tensors.get(&key) else { return Err(refuse(format!("`{}` is missing", shown(&key)))) };
    let matrices = [&a, &b].iter().all(|t| t.shape().len() == 2 && t.dtype().is_float());
    if !matrices || weight.shape().len() != 2 || !weight.dtype().is_float() {
        let message =
            format!("`{}` is {a:?}, its lora_B {b:?} and the weight {weight:?}: three float matrices", shown(&name_a));
        return Err(refuse(format!("{message} are expected")));
    }
    let ([outputs, inputs], shapes) =
        ([weight.shape()[0], weight.shape()[1]], [a.shape().to_vec(), b.shape().to_vec()]);
    let expected =
        if embedding { [vec![rank, outputs], vec![inputs, rank]] } else { [vec![rank, inputs], vec![outputs, rank]] };
    if shapes != expected {
        let [found_a, found_b] = shapes.map(|s| show(&s));
        let [want_a, want_b] = expected.map(|s| show(&s));
        return Err(refuse(format!(
            "`{}` has shape {found_a} and `{}` {found_b}, expected {want_a} and {want_b}: the weight is {} and r is {rank}",
            shown(&name_a),
            shown(&name_b),
            show(weight.shape())
        )));
    }
    let (a, b) = (a.checked_finite(&shown(&name_a)), b.checked_finite(&shown(&name_b)));
    let sum = if embedding {
        weight.plus_low_rank(&a.transposed(), &b.transposed(), scale)
    } else {
        weight.plus_low_rank(&b, &a, scale)
    };
    tensors.insert(key, sum);
    match update.factors.remove(&Factor::Bias) {
        Some((name, bias)) => add_bias(tensors, own, &name, &bias, scale),
        None => Ok(()),
    }
}

/// `lora_bias`: the module's own bias gets that of lora_B, scaled.
fn add_bias(tensors: &mut Tensors, own: &str, name: &str, bias: &LazyTensor, scale: f32) -> Result<()> {
    let key = format!("{own}.bias");
    let Some(old) = tensors.get(&key).filter(|old| old.shape() == bias.shape() && old.shape().len() == 1) else {
        return Err(refuse(format!("`{}` has no bias of its shape to be added to (`{}`)", shown(name), shown(&key))));
    };
    let (n, one) = (old.len(), LazyTensor::from_f32(&[1, 1], &[1.0]));
    let column = bias.checked_finite(&shown(name)).reshaped(&[n, 1]);
    let sum = old.reshaped(&[n, 1]).plus_low_rank(&column, &one, scale).reshaped(&[n]);
    tensors.insert(key, sum);
    Ok(())
}
