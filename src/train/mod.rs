//! Fine-tuning of the adapter and heads: the work of `ba-train`.
//!
//! Layer 7, feature `runtime`.
//!
//! ```text
//! prepare  checkpoint → artifacts (graphs by monolith, parameters, frozen weights)
//! fit      artifacts + cohort + a bundle's language model → engine → best, last, history, adapter.safetensors
//! apply    best → a new version of the bundle
//! eval     a bundle + cohort → figures, a temperature, pictures
//! ```
//!
//! [`Graphs`] are the stages that the model is trained in, [`Engine`] runs them there and back, [`Optimizer`] moves parameters: with
//! these three a program can train in a loop of its own.

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
mod saved_tensor;
mod tensors;

pub use engine::{Batch, Engine, Frozen, Outcome, Parameters, Step};
pub use graphs::{Activations, Graphs, Options, Part, Trunk, parameters};
pub use monolith::{Monolith, Parameter};
pub use optimizer::{Moments, Optimizer, moments};
