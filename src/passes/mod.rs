//! Rewrites of graphs; each ends in the verifier.
//!
//! Layer 3. Nothing here runs a model: what a pass needs to know of activations comes in as numbers.
//!
//! | pass | takes | gives |
//! |---|---|---|
//! | [`fold_batch_norm`] | `Graph` | the graph, and how many norms were folded |
//! | [`quantize::smooth`] | `&mut Graph` | nothing: weights are scaled in place |
//! | [`quantize::quantize`], [`to_fp16`], [`decompose_attention`] | `&Graph` | a new graph |
//! | [`quantize_convolutions`] | `&Graph` | a new graph, or `None` where it cannot be quantized |
//! | [`weights_to_inputs`] | `&Graph` | a new graph, and the weights |
//! | [`autodiff::joint`], [`autodiff::differentiate`] | `&Graph` | one new graph, or a forward and a backward one |
//!
//! A new graph shares the old one's weights: they are [`crate::tensor::LazyTensor`]s. The functions between them only
//! find something: [`linears`], [`fp16_nodes`], [`exceeds_fp16`], [`unfit_for_fp16`], [`quantizable`].
//!
//! ```
//! use brain_adapter::graph::{Builder, Dim};
//! use brain_adapter::passes::to_fp16;
//! use brain_adapter::tensor::{DType, LazyTensor};
//!
//! let mut g = Builder::new("layer");
//! let x = g.input("x", DType::F32, &[Dim::BATCH, Dim::Known(2)]);
//! let y = g.linear(x, "layer", &LazyTensor::from_f32(&[3, 2], &[0.5; 6]), None)?;
//! g.output("y", y)?;
//! let fp16 = to_fp16(&g.finish()?, &Default::default())?;
//! assert!(fp16.to_string().contains("float16[batch, 3] = MatMul("));
//! # Ok::<(), brain_adapter::Error>(())
//! ```

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
pub use fp16::{FP16_RANGE, Rounded, exceeds_fp16, fp16_nodes, rounding, to_fp16, unfit_for_fp16};
pub use linears::{Linear, linears};
pub use parametrize::weights_to_inputs;
