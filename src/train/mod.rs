//! Fine-tuning of the adapter and heads: the work of `ba-train`.
//!
//! Layer 7, feature `runtime`.

pub mod cohort;
mod engine;
mod graphs;
mod tensors;

pub use engine::{Batch, Engine, Frozen, Outcome, Parameters, Step};
pub use graphs::{Activations, Graphs, Options, Part, Trunk, parameters};
