//! How many operations a step cannot do without.
//!
//! A product of `[m, k]` and `[k, n]` is 2mkn operations. With L tokens, N = L-1 patches of p voxels, width h and an
//! MLP of m:
//!
//! | | there | back, to the input alone (weights are frozen) |
//! |---|---|---|
//! | linear layers of a block | 2L(4h² + 2hm) | the same |
//! | attention of a block (all heads) | QKᵀ and PV: 4L²h | dP, dV, dQ, dK: 8L²h |
//! | linear layers of the last block, whose CLS row alone is asked for | 2L·2h² + 2(2h² + 2hm) | the same |
//! | its attention | 4Lh | 8Lh |
//! | patch embedding | 2Nph | the same |
//!
//! A convolution of `i` to `o` channels with k taps and V voxels out is 2Viok operations there, as many for its
//! weight's gradient, and as many for its input's, which the first one, on the scan, does without. A head of `[o, i]`
//! is 2oi a case there and as many for its weight's gradient; the image's has an input's gradient in a step of the
//! whole model, the classifier's always. Norms, activations, the loss and AdamW are no products and count as nothing.
//!
//! More than these: the scores of attention computed again on the way back, 2L²h a block, unless they were kept
//! (PyTorch's fused attention and ours compute them again); and with recomputation most of the blocks' way there a
//! second time.

use brain_adapter::config::{AdapterKind, Config};

/// Operations of a step of the mode `tlp` with one case.
pub struct Step {
    /// What every way of doing it needs.
    pub least: f64,
    /// The scores again.
    pub scores: f64,
    /// The way there of all blocks again.
    pub blocks: f64,
}

/// Counts a step.
pub fn of_step(config: &Config) -> Step {
    let v = &config.vision;
    let patches = product(&config.run_grid());
    let (l, h, m, p) = (patches + 1.0, v.hidden as f64, v.mlp as f64, product(&v.patch));
    let blocks = v.layers as f64 - 1.0;
    let (linear, attention) = (2.0 * l * (4.0 * h * h + 2.0 * h * m), 4.0 * l * l * h);
    let last = 4.0 * l * h * h + 2.0 * (2.0 * h * h + 2.0 * h * m);
    let trunk = blocks * (2.0 * linear + 3.0 * attention) + 2.0 * last + 12.0 * l * h + 4.0 * patches * p * h;
    let least = trunk + adapter(config) + heads(config, true);
    Step { least, scores: blocks * attention / 2.0, blocks: blocks * (linear + attention) }
}

/// Of the adapter, there and back.
fn adapter(config: &Config) -> f64 {
    let a = &config.adapter;
    let (plane, out, width) = ((config.volume.size * config.volume.size) as f64, a.slices_out as f64, a.width as f64);
    match a.kind {
        AdapterKind::Bottleneck2d => {
            let (first, other) = (a.slices_in as f64 * out, 2.0 * 9.0 * out * out);
            2.0 * plane * (2.0 * first + 3.0 * other)
        }
        AdapterKind::Bottleneck3d => {
            let (first, other) = (27.0 * width, 2.0 * 27.0 * width * width + width);
            2.0 * plane * out * (2.0 * first + 3.0 * other)
        }
    }
}

/// Of the heads, for one case; `through`: on to the image.
pub fn heads(config: &Config, through: bool) -> f64 {
    let d = config.projection.dim as f64;
    let (vision, text) = (config.vision.hidden as f64 * d, config.text.hidden as f64 * d);
    let classifier = 2.0 * d * config.labels.0.len() as f64;
    2.0 * (2.0 * (vision + text) + 3.0 * classifier + if through { vision } else { 0.0 })
}

/// Number of the heads' parameters, `logit_scale` among them.
pub fn head_parameters(config: &Config) -> f64 {
    let keys = brain_adapter::model::loss::parameters(config, brain_adapter::model::Mode::Tlp);
    keys.iter().map(|(_, shape)| product(shape)).sum()
}

fn product(sizes: &[usize]) -> f64 {
    sizes.iter().product::<usize>() as f64
}
