//! The language model's own configuration, Hugging Face's `config.json` or Meta's `params.json`: what the graph
//! computes.
//!
//! Every field that changes hidden states is read or refused by name; nothing is left out silently. What a
//! `model_type` computes, and its defaults, are those of transformers' own classes (`kinds`). What differs from LLaMA 2
//! is a [`Variant`].
//!
//! # Errors
//! `config.unsupported` for what the graph does not compute, naming field, value and what is computed;
//! `config.contradiction` for fields that exclude each other; `config.syntax` and `config.value`.

mod attention;
mod fields;
mod hf;
mod json;
mod kinds;
mod meta;
mod rope;
mod size;
#[cfg(test)]
mod tests;
mod variant;

pub(crate) use json::language_model;
pub use size::LlamaConfig;
pub use variant::{Activation, RopeScaling, Variant, Window};
