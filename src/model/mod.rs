//! The Brain-Adapter's four graphs, built from a configuration and named weights.
//!
//! Layer 3. `keys` lists the tensors that a model needs, with their shapes; `weights` finds them in checkpoints, under
//! whatever prefix and in whatever layout they were saved; `adapter`, `vit`, `llama` and `heads` build graphs. Sizes
//! always come from the configuration. A graph and its main output have the name of its [`Part`]: that is the interface
//! of the ONNX files.
//!
//! | graph | inputs | outputs |
//! |---|---|---|
//! | `adapter` | `volume` f32 `[batch, D, H, W]`, in `[0, 1]` | `adapter` f32 `[batch, out, H, W]` |
//! | `vision` | `adapter` | `vision` f32 `[batch, vision.hidden]` |
//! | `text` | `input_ids`, `attention_mask` i64 `[batch, tokens]` | `text` f32 `[batch, text.hidden]` |
//! | `heads` | `vision`, `text` | `v`, `t` f32 `[batch, projection.dim]`, `logits` f32 `[batch, labels]`, `similarity` |
//!
//! Tokens are padded on the right. `similarity` is f32 `[batch]`. Where the checkpoint has an image-only classifier,
//! the heads also give `image_logits` f32 `[batch, labels]`.
//!
//! ```
//! use brain_adapter::{config::Config, model::keys};
//!
//! let (name, shape) = &keys::adapter(&Config::default())[0];
//! assert_eq!((name.as_str(), shape.as_slice()), ("adapter.reduce.conv.weight", &[64, 256, 1, 1][..]));
//! ```

pub mod adapter;
mod attention;
pub mod heads;
pub mod keys;
pub mod llama;
mod load;
pub mod loss;
mod part;
mod prefix;
mod unknown;
pub mod vit;
mod weights;

pub use load::{Models, Trained, Vision, is_trained, trained, vision};
pub use loss::Mode;
pub use part::{Part, PartMap};
pub use weights::Weights;

/// How attention is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// `com.microsoft.MultiHeadAttention`: on a CPU the fastest form, which never stores the scores.
    Fused,
    /// MatMul, Softmax, MatMul: standard operators only, as PyTorch's eager attention.
    Decomposed,
}

/// Which intermediate results a graph gives besides its own output. For comparing stages with PyTorch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stages {
    /// The graph's output alone.
    #[default]
    Output,
    /// `vision_patch_tokens`, `vision_block0`, `vision_tokens`; `text_hidden`. The last block then computes all tokens.
    All,
}
