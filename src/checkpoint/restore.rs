//! The weights as the model has them: what is quantized made floats, LoRA merged.
//!
//! Flows in: tensors as a file has them, and where it lies. Flows out: the same names and tensors with every weight a
//! float of the whole model, as far as that follows from files; else an error.
//!
//! # Errors
//! `checkpoint.quantized`, `checkpoint.lora`; those of reading the adapter's files.

use std::path::Path;

use super::{Contents, SourceFile, lora, quantized};
use crate::error::Result;

/// Makes floats and merges. `folder` holds the checkpoint and may hold `config.json` and an adapter; bytes from memory
/// have none. The adapter's files are added to `files`.
pub(super) fn weights(contents: Contents, folder: Option<&Path>, files: &mut Vec<SourceFile>) -> Result<Contents> {
    lora::merge(quantized::restore(contents, folder)?, folder, files)
}
