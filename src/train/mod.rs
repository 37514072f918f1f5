//! Fine-tuning of the adapter and heads: the work of `ba-train`.
//!
//! Layer 7, feature `runtime`.

pub mod apply;
pub mod artifacts;
pub mod cohort;
mod engine;
pub mod eval;
pub mod fit;
mod graphs;
mod monolith;
mod optimizer;
pub mod picture;
pub mod prepare;
mod stash;
mod tensors;

pub use engine::{Batch, Engine, Frozen, Outcome, Parameters, Step};
pub use graphs::{Activations, Graphs, Options, Part, Trunk, parameters};
pub use monolith::{Monolith, Parameter};
pub use optimizer::{Moments, Optimizer, moments};
