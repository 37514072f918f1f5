//! Weights that PyTorch computes from other tensors when the model runs: folded into the tensor that they make.
//!
//! Flows in: names and lazy tensors. Flows out: the same, with `weight` in the place of
//!
//! - `weight_g`, `weight_v` (`torch.nn.utils.weight_norm`) or `parametrizations.weight.original0`, `.original1`
//!   (`torch.nn.utils.parametrizations.weight_norm`): `v · g / ‖v‖`, the norm over all axes but that of `g`;
//! - `weight_orig`, `weight_u`, `weight_v` (`torch.nn.utils.spectral_norm`) or `parametrizations.weight.original`,
//!   `.0._u`, `.0._v`: `W / σ` with `σ = uᵀ W v`, as in eval mode, where `u` and `v` stay as they are. Rows of `W` are
//!   those of axis 0, or of another axis (`dim`), which the lengths of `u` and `v` tell, and where several have that
//!   length, which one `u` is the direction of `W v` for;
//! - `weight_orig`, `weight_mask` (`torch.nn.utils.prune`): `W · mask`.
//!
//! Nothing is computed before the weight is read. It is float32 then; norms and sums are taken in float64. Other
//! parametrizations are code that a file does not hold: the weight is listed as skipped, with the way out, and whoever
//! wants it says so.
//!
//! Formulas: PyTorch, `torch/nn/utils/{weight_norm,spectral_norm,prune,parametrizations}.py`.
//!
//! # Errors
//! `checkpoint.corrupt` when the tensors of a weight do not fit each other, `checkpoint.dtype` when they are no floats;
//! `checkpoint.value`, when the weight is read, for a spectral norm whose `u` and `v` are still random.
//!
//! # Safety
//! No `unsafe`; shapes are compared before anything is read.

use std::collections::{BTreeMap, BTreeSet};

use super::{Contents, Skipped};
use crate::error::{Code, Error, Result};
use crate::tensor::{LazyTensor, show};

/// The part of a name that a registered parametrization makes.
const PART: &str = "parametrizations.";
/// The only parameter that the older functions are used on in practice; other names would be guesses.
const WEIGHT: &str = "weight";

/// The same contents, with every known parametrization folded.
pub(super) fn folded(mut contents: Contents) -> Result<Contents> {
    for name in older(&contents.tensors) {
        fold_older(&mut contents.tensors, &name)?;
    }
    for (before, parameter) in registered(&contents.tensors) {
        fold_registered(&mut contents, &before, &parameter)?;
    }
    Ok(contents)
}

/// The weights that an older function computes: those of which `_g` and `_v`, or `_orig`, are there and they are not.
fn older(tensors: &BTreeMap<String, LazyTensor>) -> Vec<String> {
    let made = |name: &String| {
        let base = name.strip_suffix("_g").or_else(|| name.strip_suffix("_orig"))?;
        let weight = base == WEIGHT || base.strip_suffix(WEIGHT).is_some_and(|before| before.ends_with('.'));
        (weight && !tensors.contains_key(base)).then(|| base.to_owned())
    };
    let names: BTreeSet<String> = tensors.keys().filter_map(made).collect();
    names.into_iter().collect()
}

fn fold_older(tensors: &mut BTreeMap<String, LazyTensor>, name: &str) -> Result<()> {
    let key = |ending: &str| format!("{name}{ending}");
    let get = |ending: &str| tensors.get(&key(ending)).cloned();
    let (made, used): (LazyTensor, &[&str]) = match (get("_orig"), get("_g"), get("_v"), get("_u"), get("_mask")) {
        (Some(weight), _, _, _, Some(mask)) => (masked(name, &weight, &mask)?, &["_orig", "_mask"]),
        (Some(weight), _, Some(v), Some(u), None) => (spectral(name, &weight, &u, &v)?, &["_orig", "_u", "_v"]),
        (None, Some(g), Some(v), ..) => (weight_normed(name, &g, &v)?, &["_g", "_v"]),
        _ => return Ok(()),
    };
    used.iter().for_each(|ending| drop(tensors.remove(&key(ending))));
    tensors.insert(name.to_owned(), made);
    Ok(())
}

/// The registered parametrizations: what stands before them in the names, and the parameter's name.
fn registered(tensors: &BTreeMap<String, LazyTensor>) -> BTreeSet<(String, String)> {
    let split = |name: &String| {
        let at = name.find(PART).filter(|&at| at == 0 || name[..at].ends_with('.'))?;
        let (parameter, _) = name[at + PART.len()..].split_once('.')?;
        Some((name[..at].to_owned(), parameter.to_owned()))
    };
    tensors.keys().filter_map(split).collect()
}

fn fold_registered(contents: &mut Contents, before: &str, parameter: &str) -> Result<()> {
    let (start, name) = (format!("{before}{PART}{parameter}."), format!("{before}{parameter}"));
    if contents.tensors.contains_key(&name) {
        return Ok(());
    }
    let under = contents.tensors.range(start.clone()..).take_while(|(n, _)| n.starts_with(&start));
    let parts: BTreeMap<String, LazyTensor> = under.map(|(n, t)| (n[start.len()..].to_owned(), t.clone())).collect();
    let names: Vec<&str> = parts.keys().map(String::as_str).collect();
    let made = match names.as_slice() {
        ["original0", "original1"] if axis_of(&parts["original0"], &parts["original1"]).is_some() => {
            Some(weight_normed(&name, &parts["original0"], &parts["original1"])?)
        }
        ["0._u", "0._v", "original"] => Some(spectral(&name, &parts["original"], &parts["0._u"], &parts["0._v"])?),
        _ => None,
    };
    for part in parts.keys() {
        contents.tensors.remove(&format!("{start}{part}"));
    }
    match made {
        Some(made) => drop(contents.tensors.insert(name, made)),
        None => {
            let why = format!(
                "a parametrization: call torch.nn.utils.parametrize.remove_parametrizations(module, \"{parameter}\") before \
                 saving; it computes the weight from {}",
                super::listed(&names)
            );
            contents.skipped.push(Skipped { name, why });
        }
    }
    Ok(())
}

/// The axis along which `g` has one number each, `None` inside when it is one number for the whole of `v`.
fn axis_of(g: &LazyTensor, v: &LazyTensor) -> Option<Option<usize>> {
    if g.len() == 1 && (g.shape().is_empty() || g.shape().len() == v.shape().len()) {
        return Some(None);
    }
    let mut long = (0..g.shape().len()).filter(|&axis| g.shape()[axis] != 1);
    match (long.next(), long.next()) {
        (Some(axis), None) if g.shape().len() == v.shape().len() && g.shape()[axis] == v.shape()[axis] => {
            Some(Some(axis))
        }
        _ => None,
    }
}

fn weight_normed(name: &str, g: &LazyTensor, v: &LazyTensor) -> Result<LazyTensor> {
    floats(name, &[g, v])?;
    let axis = axis_of(g, v).ok_or_else(|| {
        let (g, v) = (show(g.shape()), show(v.shape()));
        corrupt(format!("the weight norm of `{name}` has a magnitude of shape {g} for a direction of shape {v}"))
    })?;
    Ok(v.weight_normed(g, axis))
}

fn spectral(name: &str, weight: &LazyTensor, u: &LazyTensor, v: &LazyTensor) -> Result<LazyTensor> {
    floats(name, &[weight, u, v])?;
    let fits = |&axis: &usize| {
        u.shape() == [weight.shape()[axis]]
            && v.shape().len() == 1
            && u.len().checked_mul(v.len()) == Some(weight.len())
    };
    let axes: Vec<usize> = (0..weight.shape().len()).filter(fits).collect();
    if axes.is_empty() {
        let [weight, u, v] = [weight, u, v].map(|t| show(t.shape()));
        return Err(corrupt(format!(
            "the spectral norm of `{name}` has u {u} and v {v} for a weight of shape {weight}"
        )));
    }
    Ok(weight.spectral_normed(u, v, &axes, name))
}

fn masked(name: &str, weight: &LazyTensor, mask: &LazyTensor) -> Result<LazyTensor> {
    floats(name, &[weight])?;
    if weight.shape() != mask.shape() {
        let (weight, mask) = (show(weight.shape()), show(mask.shape()));
        return Err(corrupt(format!("the mask of `{name}` has shape {mask}, the weight {weight}")));
    }
    Ok(weight.masked(mask))
}

/// Integers are no weights, also where a weight is computed from them.
fn floats(name: &str, tensors: &[&LazyTensor]) -> Result<()> {
    match tensors.iter().find(|t| !t.dtype().is_float()) {
        None => Ok(()),
        Some(t) => {
            let message = format!("`{name}` is computed from a tensor of type {}, expected floats", t.dtype());
            Err(Error::new(Code::CHECKPOINT_DTYPE, message))
        }
    }
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
