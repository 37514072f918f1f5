//! A small, slow, plain reference of the Brain-Adapter model, and random checkpoints to try it on.
//!
//! Written from the specification (`design/model.md`: "Adapter", "Vision", "Text", "Heads", "config.json") and its
//! PyTorch reference alone. It shares no code with the library, so that the two cannot be wrong together.
//! Everything is computed in `f64` by loops over row-major arrays; nothing here is fast.
//!
//! * [`Case::forward`] or [`forward_all`]: every stage by the names the recorded fixtures use.
//! * [`generate::random_case`]: a random valid model with inputs. [`write::write_case`]: the same as files.

pub mod adapter;
pub mod config;
pub mod files;
pub mod generate;
pub mod heads;
pub mod llama;
pub mod math;
pub mod meta;
pub mod vit;
pub mod weights;
pub mod write;

use std::collections::BTreeMap;

use serde_json::Value;

pub use config::{AdapterConfig, LlamaConfig, VitConfig};
pub use generate::{Case, Inputs};

/// A dense row-major array: the last axis varies fastest. A scalar has an empty shape and one element.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Lengths, outermost axis first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` elements.
    pub data: Vec<f64>,
}

impl Array {
    /// Takes the data as they are; panics when their number is not the shape's.
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::new(shape, vec![0.0; shape.iter().product()])
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.data.len(), "{:?} to {shape:?}", self.shape);
        self.shape = shape.to_vec();
        self
    }

    /// Element `i` along the first axis, as an array of one axis less.
    pub fn at(&self, i: usize) -> Self {
        let rest = &self.shape[1..];
        let n: usize = rest.iter().product();
        Self::new(rest, self.data[i * n..(i + 1) * n].to_vec())
    }

    /// The first `n` elements along the first axis, the axis kept.
    pub fn head(&self, n: usize) -> Self {
        Self::stack(&(0..n).map(|i| self.at(i)).collect::<Vec<_>>())
    }

    /// Arrays of one shape stacked along a new first axis.
    pub fn stack(parts: &[Self]) -> Self {
        let mut shape = vec![parts.len()];
        shape.extend(&parts[0].shape);
        assert!(parts.iter().all(|p| p.shape == parts[0].shape));
        Self::new(&shape, parts.iter().flat_map(|p| p.data.iter().copied()).collect())
    }

    /// Row `i` of `[.., n]` seen as `[rows, n]`.
    pub fn row(&self, i: usize) -> &[f64] {
        let n = *self.shape.last().unwrap();
        &self.data[i * n..(i + 1) * n]
    }

    /// The elements as `f32`, in order.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&x| x as f32).collect()
    }

    /// The largest absolute difference of two arrays of one shape; NaN if any difference is NaN.
    pub fn max_abs_diff(&self, other: &Self) -> f64 {
        assert_eq!(self.shape, other.shape);
        let d = self.data.iter().zip(&other.data).map(|(a, b)| (a - b).abs());
        d.fold(0.0, |m, x| if x.is_nan() || x > m { x } else { m })
    }
}

/// Tensors by their PyTorch state-dict names.
pub type Weights = BTreeMap<String, Array>;

/// The tensor called `name`; panics with the name when it is missing.
pub fn get<'a>(w: &'a Weights, name: &str) -> &'a Array {
    w.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
}

/// Every stage of the model by name, as in the fixtures' `expected.safetensors` (the inputs excepted):
///
/// `adapter [B,D,H,W]` · `vision_patch_tokens [B,N,C]` (position embeddings added, no CLS) · `vision_block0 [B,1+N,C]`
/// · `vision_tokens [B,1+N,C]` (after the final norm, CLS first) · `vision [B,C]` · `text_hidden [B,T,E]` (after the
/// final norm, padding rows 0) · `text [B,E]` · `v [B,P]` · `t [B,P]` · `logits [B,3]` · `image_logits [B,3]`
/// (only with an `image_classifier`).
///
/// `heads`, `vit` and `llama` hold the names of model.md without prefixes, except that `llama` has HF's `model.`.
pub fn forward_all(
    config: &Value,
    llama_config: &Value,
    heads: &Weights,
    vit: &Weights,
    llama: &Weights,
    inputs: &Inputs,
) -> BTreeMap<String, Array> {
    let acfg = AdapterConfig::from_json(config);
    let vcfg = VitConfig::from_json(config);
    let lcfg = LlamaConfig::from_json(llama_config);

    let adapter = adapter::forward(&acfg, heads, &inputs.volume);
    let vision = vit::forward(&vcfg, vit, &adapter);
    let text_hidden = llama::forward(&lcfg, llama, &inputs.input_ids, &inputs.attention_mask);
    let text = llama::pool(&config::text_pool(config), &text_hidden, &inputs.attention_mask);
    let h = heads::forward(heads, &vision.pooled, &text);

    let mut out = BTreeMap::new();
    let mut put = |name: &str, a: Array| out.insert(name.to_owned(), a);
    put("adapter", adapter);
    put("vision_patch_tokens", vision.patch_tokens);
    put("vision_block0", vision.block0);
    put("vision_tokens", vision.tokens);
    put("vision", vision.pooled);
    put("text_hidden", text_hidden);
    put("text", text);
    put("v", h.v);
    put("t", h.t);
    put("logits", h.logits);
    if let Some(l) = h.image_logits {
        put("image_logits", l);
    }
    out
}
