//! What a model wants of a checkpoint, compared all at once.
//!
//! Flows in: names and shapes that are required or optional, and patterns of names that may be passed over. Flows out:
//! [`Picked`] tensors and the list of skipped names, or one error that names everything that does not fit.
//!
//! # Errors
//! `checkpoint.tensors`, one line: what is missing, unexpected or of the wrong shape, with found and expected.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checkpoint, listed};
use crate::error::{Code, Error, Result};
use crate::tensor::{LazyTensor, show};

/// Names and shapes that a model wants.
#[derive(Clone, Debug, Default)]
pub struct Requirements {
    wanted: Vec<Wanted>,
    skippable: Vec<String>,
}

#[derive(Clone, Debug)]
struct Wanted {
    name: String,
    shape: Vec<usize>,
    required: bool,
}

/// The tensors that a model wanted, and what was left.
#[derive(Clone, Debug)]
pub struct Picked {
    /// Wanted tensors by name; all required ones are there, optional ones where the checkpoint has them.
    pub tensors: BTreeMap<String, LazyTensor>,
    /// Names in the checkpoint that no wanted tensor has, sorted: those that a pattern allows to skip, and the
    /// entries that are not read at all.
    pub skipped: Vec<String>,
}

impl Requirements {
    /// Nothing wanted yet, nothing allowed to skip.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tensor `name` must be there, of this shape.
    #[must_use]
    pub fn require(mut self, name: impl Into<String>, shape: &[usize]) -> Self {
        self.wanted.push(Wanted { name: name.into(), shape: shape.to_vec(), required: true });
        self
    }

    /// The tensor `name` may be there, and is then of this shape.
    #[must_use]
    pub fn optional(mut self, name: impl Into<String>, shape: &[usize]) -> Self {
        self.wanted.push(Wanted { name: name.into(), shape: shape.to_vec(), required: false });
        self
    }

    /// Other tensors whose names match `pattern` are listed as skipped instead of refused; `*` stands for any text.
    #[must_use]
    pub fn skip(mut self, pattern: impl Into<String>) -> Self {
        self.skippable.push(pattern.into());
        self
    }

    /// The names that must be there.
    pub fn required(&self) -> impl Iterator<Item = &str> {
        self.wanted.iter().filter(|want| want.required).map(|want| want.name.as_str())
    }

    /// Picks what is wanted from `checkpoint`.
    ///
    /// # Errors
    /// One `checkpoint.tensors` error that names every tensor that is missing, of the wrong shape, or there without
    /// being wanted or skippable.
    pub fn pick(&self, checkpoint: &Checkpoint) -> Result<Picked> {
        let mut picked = Picked { tensors: BTreeMap::new(), skipped: Vec::new() };
        let (mut missing, mut wrong) = (Vec::new(), Vec::new());
        let passed_over: BTreeMap<&str, &str> =
            checkpoint.skipped().iter().map(|s| (s.name.as_str(), s.why.as_str())).collect();
        for want in &self.wanted {
            match checkpoint.get(&want.name) {
                Some(found) if found.shape() == want.shape => {
                    picked.tensors.insert(want.name.clone(), found.clone());
                }
                Some(found) => {
                    let (found, expected) = (show(found.shape()), show(&want.shape));
                    wrong.push(format!("`{}` (found {found}, expected {expected})", want.name));
                }
                None if want.required => missing.push(match passed_over.get(want.name.as_str()) {
                    Some(why) => format!("`{}` {} (found {why})", want.name, show(&want.shape)),
                    None => format!("`{}` {}", want.name, show(&want.shape)),
                }),
                None => {}
            }
        }
        let known: BTreeSet<&str> = self.wanted.iter().map(|w| w.name.as_str()).collect();
        let (mut unexpected, others) = (Vec::new(), checkpoint.iter().filter(|(name, _)| !known.contains(name)));
        for (name, tensor) in others {
            if self.skippable.iter().any(|pattern| matches(pattern, name)) {
                picked.skipped.push(name.to_owned());
            } else {
                unexpected.push(format!("`{name}` {}", show(tensor.shape())));
            }
        }
        let groups = [("missing", missing), ("of the wrong shape", wrong), ("unexpected", unexpected)];
        if let Some(mut message) = complaint(&groups) {
            message.push_str(&self.placeholders(checkpoint).unwrap_or_default());
            return Err(Error::new(Code::CHECKPOINT_TENSORS, message).at(checkpoint.path()));
        }
        picked.skipped.extend(checkpoint.skipped().iter().map(|s| s.name.clone()));
        picked.skipped.sort_unstable();
        Ok(picked)
    }
}

impl Requirements {
    /// What to say when tensors of no elements are where weights are wanted.
    fn placeholders(&self, checkpoint: &Checkpoint) -> Option<String> {
        let empty =
            |want: &&Wanted| checkpoint.get(&want.name).is_some_and(|t| t.shape() == [0] && !want.shape.contains(&0));
        let empty = self.wanted.iter().filter(empty).count();
        (empty > 0).then(|| {
            format!(
                "; {empty} tensors are empty placeholders ([0]): under DeepSpeed ZeRO-3 the weights lie in shards \
                 (*_optim_states.pt), not in this file. Name the folder of the DeepSpeed checkpoint, convert it with its \
                 zero_to_fp32.py, or gather the weights when saving (stage3_gather_16bit_weights_on_model_save)"
            )
        })
    }
}

/// `2 tensors missing: …; 1 tensor unexpected: …`, or nothing when all groups are empty.
fn complaint(groups: &[(&str, Vec<String>)]) -> Option<String> {
    let filled = groups.iter().filter(|(_, names)| !names.is_empty());
    let parts: Vec<String> = filled
        .map(|(what, names)| {
            let noun = if names.len() == 1 { "tensor" } else { "tensors" };
            format!("{} {noun} {what}: {}", names.len(), listed(names))
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Whether `pattern`, in which `*` stands for any text, matches the whole of `name`.
///
/// Each piece between stars is taken at its first place, which is enough; the time is at most pieces times length.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').map_or((None, rest), |(middle, last)| (Some(middle), last));
    for piece in middle.into_iter().flat_map(|m| m.split('*')) {
        let Some(at) = name.find(piece) else { return false };
        name = &name[at + piece.len()..];
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, want) in [
            ("lm_head.weight", "lm_head.weight", true),
            ("lm_head", "lm_head.weight", false),
            ("mm_*", "mm_vision_proj.weight", true),
            ("mm_*", "a.mm_x", false),
            ("*.inv_freq", "model.layers.0.rotary_emb.inv_freq", true),
            ("blocks.*.cross_attn.*", "blocks.3.cross_attn.out.weight", true),
            ("blocks.*.cross_attn.*", "blocks.3.attn.out.weight", false),
            ("a*a", "a", false),
            ("*", "", true),
            ("a**b*c", "axxbyyc", true),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }
}
