//! Fine-tuning of the adapter and heads: the work of `ba-train`.
//!
//! Layer 7, feature `runtime`.

pub mod cohort;
pub mod eval;
pub mod picture;
