//! Rewrites of graphs: each takes a [`crate::graph::Graph`], returns one, and ends in the verifier.
//!
//! Layer 3. Nothing here runs a model: what a pass needs to know of activations comes in as numbers.

pub mod autodiff;
mod convolutions;
mod decompose;
mod fold;
mod free;
mod half;
mod linears;
pub mod quantize;
mod smooth;

pub use convolutions::{quantizable, quantize_convolutions};
pub use decompose::{Scores, decompose_attention};
pub use fold::fold_batch_norm;
pub use free::free_weights;
pub use half::{HALF_RANGE, Rounded, beyond_range, half, half_nodes, rounding, unfit_for_half};
pub use linears::{Linear, Segment, linears, segments};
pub use smooth::{factors, smooth};
