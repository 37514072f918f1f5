//! LoRA: an update s·B·A beside a model's weights becomes part of them, or is refused. It is never left out in silence.
//!
//! Flows in: a checkpoint's tensors, and the folder that they come from. Flows out: the same tensors, merged: lazily,
//! in float32, as PEFT's `merge_and_unload` makes them. An adapter is
//!
//! - `adapter_config.json` with `adapter_model.safetensors` (or `.bin`) in the folder of the weights or the one above;
//! - LoRA tensors among the weights themselves (the state dict of a PEFT model), with `adapter_config.json` beside;
//! - `adaptor.A` and `adaptor.B` in Meta's layout: see [`meta`].
//!
//! A warning `checkpoint_merged` says what was merged.
//!
//! # Errors
//! `checkpoint.lora`: the adapter stands alone, its settings are missing, it is of another kind, or it does not fit.

mod config;
mod folder;
mod merge;
pub(super) mod meta;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use super::names::shown;
use super::{Contents, Skipped, SourceFile};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::LazyTensor;
use config::Config;
pub(super) use folder::is_adapter;
use merge::{Modules, Update};
use names::{Factor, Part};

const WAY: &str = "merge it in Python with merge_and_unload(), save the result with save_pretrained, and use that";

/// The error of an adapter that cannot be merged.
fn refuse(what: String) -> Error {
    Error::new(Code::CHECKPOINT_LORA, format!("holds LoRA weights (PEFT), which cannot be merged here: {what}; {WAY}"))
}

/// Merges what there is of LoRA in `contents` or beside them in `folder`; `files` gets the adapter's.
///
/// # Errors
/// `checkpoint.lora`; those of reading the adapter's files.
pub(super) fn merge(mut contents: Contents, folder: Option<&Path>, files: &mut Vec<SourceFile>) -> Result<Contents> {
    let own = contents.tensors.keys().any(|name| !matches!(names::part(name), Part::Plain(_)));
    let found = match folder {
        Some(folder) => folder::find(folder)?,
        None => None,
    };
    if own {
        let taken = split(&mut contents)?;
        if taken.modules.is_empty() {
            return Ok(contents);
        }
        if !taken.has_base(&contents) {
            return Err(alone(found.as_ref()));
        }
        let Some(found) = found else { return Err(without_settings(&taken)) };
        if found.weights.is_some() {
            return Err(both(&found));
        }
        files.push(found.config_file.clone());
        let config = found.settings()?;
        return add(contents, taken, Vec::new(), (&found, &config), "the checkpoint itself");
    }
    let is_language_model = contents.tensors.keys().any(|name| name.ends_with("embed_tokens.weight"));
    let Some(found) = found else {
        if let Some(folder) = folder.filter(|_| is_language_model) {
            contents.warnings.extend(folder::elsewhere(folder));
        }
        return Ok(contents);
    };
    // One folder may hold several checkpoints, and the adapter be another's.
    let is_for_this = is_language_model || (found.beside && has_layers(&contents));
    let read = || -> Result<(Config, Taken, &Path)> {
        let config = found.settings()?;
        let Some(weights) = &found.weights else {
            let what = "adapter_config.json is there, adapter_model.safetensors is not";
            return Err(refuse(what.into()).at(&found.config));
        };
        Ok((config, Taken::of(found.read()?).map_err(|e| e.at(weights))?, weights))
    };
    let (config, taken, weights) = match read() {
        Ok(read) => read,
        Err(error) if is_for_this => return Err(error),
        Err(_) => return Ok(contents),
    };
    if !is_for_this && merge::align(&contents.tensors, &taken.modules, &taken.plain).found == 0 {
        return Ok(contents);
    }
    files.extend([found.config_file.clone(), SourceFile::at(weights)?]);
    let (others, extra) = found.others()?;
    files.extend(extra);
    let from = folder::file_name(weights);
    add(contents, taken, others, (&found, &config), &from)
}

/// Adds the updates of `taken`, and puts `others` in place where the model has them.
fn add(
    mut contents: Contents,
    taken: Taken,
    others: Vec<(String, LazyTensor)>,
    (found, config): (&folder::Found, &Config),
    from: &str,
) -> Result<Contents> {
    let align = merge::align(&contents.tensors, &taken.modules, &taken.plain);
    let done = merge::into(&mut contents, taken.modules, taken.plain, config, &align);
    let done = done.map_err(|e| e.at(found.weights.as_deref().unwrap_or(&found.config)))?;
    for (name, tensor) in others {
        match align.name(&name).filter(|name| contents.tensors.contains_key(name)) {
            Some(name) => drop(contents.tensors.insert(name, tensor)),
            None => contents.skipped.push(Skipped { name, why: "in non_lora_trainables.bin, not in the model".into() }),
        }
    }
    let replaced = if done.replaced > 0 { format!(", {} replaced", done.replaced) } else { String::new() };
    let message = format!("LoRA of {from} was merged into {} tensors{replaced} ({})", done.merged, config.summary());
    contents.warnings.push(Warning::new(WarningCode::CHECKPOINT_MERGED, message));
    Ok(contents)
}

/// Whether the tensors have layers at all, as what LoRA is for has.
fn has_layers(contents: &Contents) -> bool {
    contents.tensors.keys().any(|name| name.split('.').any(|part| part.parse::<usize>().is_ok()))
}

/// An adapter's tensors.
#[derive(Default)]
struct Taken {
    modules: Modules,
    /// Tensors that take the place of the model's.
    plain: BTreeMap<String, LazyTensor>,
    /// A name, for messages.
    example: String,
}

impl Taken {
    /// The tensors of an adapter's file.
    fn of(tensors: BTreeMap<String, LazyTensor>) -> Result<Self> {
        let mut taken = Self::default();
        for (name, tensor) in tensors {
            taken.add(name, tensor)?;
        }
        if taken.modules.is_empty() {
            return Err(refuse("the adapter's file has no lora_A and lora_B".into()));
        }
        Ok(taken)
    }

    fn add(&mut self, name: String, tensor: LazyTensor) -> Result<()> {
        match names::part(&name) {
            Part::Factor { module, factor, adapter } => {
                self.example.clone_from(&name);
                let update = self.modules.entry(module).or_insert_with(|| Update { adapter, factors: BTreeMap::new() });
                let adapter = names::part(&name);
                let same = matches!(&adapter, Part::Factor { adapter, .. } if *adapter == update.adapter);
                if !same || update.factors.insert(factor, (name.clone(), tensor)).is_some() {
                    return Err(refuse(format!("`{}` is one of several adapters for a module", shown(&name))));
                }
            }
            Part::Plain(plain) => {
                if self.plain.insert(plain, tensor).is_some() {
                    return Err(refuse(format!("two tensors are `{}`", shown(&name))));
                }
            }
            Part::Original => {}
            Part::Other(method) => {
                return Err(refuse(format!("`{}` is a tensor of {method}", shown(&name))));
            }
        }
        Ok(())
    }

    /// Whether the model that the update is for is there, at least in part.
    fn has_base(&self, contents: &Contents) -> bool {
        let holds = |module: &String| contents.tensors.contains_key(&format!("{module}.weight"));
        self.modules.is_empty() || self.modules.keys().any(holds)
    }
}

/// Takes the LoRA tensors out of a PEFT model's state dict, whose other tensors get their plain names.
fn split(contents: &mut Contents) -> Result<Taken> {
    let taken = {
        let mut taken = Taken::default();
        for (name, tensor) in std::mem::take(&mut contents.tensors) {
            taken.add(name, tensor)?;
        }
        taken
    };
    contents.tensors = taken.plain;
    Ok(Taken { plain: BTreeMap::new(), ..taken })
}

/// A LoRA without the model that it is for.
fn alone(found: Option<&folder::Found>) -> Error {
    let base = found.and_then(|f| serde_json::from_slice(&f.bytes).ok()).and_then(|json| config::base(&json));
    let base = base.map_or_else(|| "the model that it was trained on".to_owned(), |name| format!("`{name}`"));
    let message = format!(
        "holds a LoRA adapter (PEFT) alone, without its base model: put the weights of {base} beside it (it is then \
         merged here), or {WAY}"
    );
    Error::new(Code::CHECKPOINT_LORA, message)
}

fn without_settings(taken: &Taken) -> Error {
    let message = format!(
        "holds LoRA weights (PEFT) that are not merged (`{}`), and their scale, lora_alpha over r, is unknown: put \
         adapter_config.json beside the file (it is then merged here), or {WAY}",
        shown(&taken.example)
    );
    Error::new(Code::CHECKPOINT_LORA, message)
}

fn both(found: &folder::Found) -> Error {
    let message = "an adapter lies beside weights that have LoRA tensors of their own, which of the two counts is not \
                   said: move one of them away";
    refuse(message.into()).at(&found.config)
}
