//! Rewrites of graphs. Each ends in the verifier.
//!
//! Layer 3. Nothing here runs a model: what a pass needs to know of activations comes in as numbers.
//!
//! | pass | takes | returns |
//! |---|---|---|
//! | [`fold_batch_norm`] | `Graph` | a new one, and the number of norms folded |
//! | [`decompose_attention`], [`to_fp16`], [`quantize::quantize`] | `&Graph` | a new one |
//! | [`quantize_convolutions`] | `&Graph` | a new one, or `None` where it cannot be quantized |
//! | [`weights_to_inputs`] | `&Graph` | a new one, and the weights that became inputs |
//! | [`quantize::smooth`] | `&mut Graph` | nothing: weights are scaled in place |
//! | [`autodiff::joint`], [`autodiff::differentiate`] | `&Graph` | a new one that computes gradients; two, forward and backward |

pub mod autodiff;
mod convolutions;
mod decompose;
mod fold;
mod fp16;
mod linears;
mod parametrize;
pub mod quantize;

pub use convolutions::{quantizable, quantize_convolutions};
pub use decompose::{Scores, decompose_attention};
pub use fold::fold_batch_norm;
pub use fp16::{HALF_RANGE, Rounded, exceeds_fp16, fp16_nodes, rounding, to_fp16, unfit_for_fp16};
pub use linears::{Linear, Segment, linears, segments};
pub use parametrize::weights_to_inputs;
