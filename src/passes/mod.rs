//! Rewrites of graphs: each takes a [`crate::graph::Graph`], returns one, and ends in the verifier.
//!
//! Layer 3. Nothing here runs a model: what a pass needs to know of activations comes in as numbers.

pub mod autodiff;
mod convolutions;
mod decompose;
mod fold;
mod fp16;
mod linears;
mod parametrize;
pub mod quantize;
mod smooth;

pub use convolutions::{quantizable, quantize_convolutions};
pub use decompose::{Scores, decompose_attention};
pub use fold::fold_batch_norm;
pub use fp16::{HALF_RANGE, Rounded, exceeds_fp16, half_nodes, rounding, to_fp16, unfit_for_fp16};
pub use linears::{Linear, linears};
pub use parametrize::weights_to_inputs;
pub use smooth::{factors, smooth};
