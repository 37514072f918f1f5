//! Names of tensors that a file holds under another name.
//!
//! Flows in: the tensors of a checkpoint. Flows out: the same, with names that share a tensor's bytes:
//! - safetensors' `save_model` keeps one of several names of a shared tensor and writes the others into `__metadata__`,
//!   each with the name that was kept (safetensors/torch.py).
//! - A language model whose embedding table and output layer are one (`tie_word_embeddings`) may be saved under the
//!   output layer's name alone.

use super::Checkpoint;
use super::contents::Contents;

/// Adds the names of shared tensors that `__metadata__` lists.
pub(super) fn restore(contents: &mut Contents) {
    for (name, kept) in &contents.metadata {
        if !contents.tensors.contains_key(name)
            && let Some(tensor) = contents.tensors.get(kept)
        {
            let tensor = tensor.clone();
            contents.tensors.insert(name.clone(), tensor);
        }
    }
}

impl Checkpoint {
    /// A view in which the embedding table of a tied language model has its name, where the file has the output layer
    /// (`lm_head.weight`) alone; the same where it has a table, or where nothing says how its names begin.
    #[must_use]
    pub fn with_tied_table(&self) -> Self {
        let mut view = self.clone();
        let Some((prefix, head)) = self.lone_head() else { return view };
        let (name, tensor) = (format!("{prefix}embed_tokens.weight"), self.contents.tensors.get(head));
        view.contents.tensors.extend(tensor.map(|tensor| (name, tensor.clone())));
        view
    }

    /// How the names of the language model begin, and the name of its output layer, if it has no table.
    fn lone_head(&self) -> Option<(&str, &str)> {
        let mut heads = self.names().filter(|name| *name == "lm_head.weight" || name.ends_with(".lm_head.weight"));
        let (Some(head), None) = (heads.next(), heads.next()) else { return None };
        let table = |name: &str| name == "embed_tokens.weight" || name.ends_with(".embed_tokens.weight");
        if self.names().any(table) {
            return None;
        }
        let layer = "layers.0.self_attn.";
        let prefix = self.names().find_map(|name| {
            let (prefix, _) = name.split_once(layer)?;
            (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
        });
        prefix.map(|prefix| (prefix, head))
    }
}
