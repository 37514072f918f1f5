//! Projections and classifiers (model.md, "Heads").

use super::math::linear;
use super::{Array, Weights, get};

/// What the heads give; P = `projection.dim`.
pub struct HeadStages {
    /// `[B, P]`: the scan, projected, not normalised.
    pub v: Array,
    /// `[B, P]`: the report, projected, not normalised.
    pub t: Array,
    /// `[B, 3]`: CN, MCI, AD from both.
    pub logits: Array,
    /// `[B, 3]`: from the scan alone, when there is an `image_classifier`.
    pub image_logits: Option<Array>,
}

/// vision `[B, C]`, text `[B, E]`.
pub fn forward(w: &Weights, vision: &Array, text: &Array) -> HeadStages {
    let apply =
        |x: &Array, name: &str| linear(x, get(w, &format!("{name}.weight")), Some(get(w, &format!("{name}.bias"))));
    let v = apply(vision, "vision_projection");
    let t = apply(text, "text_projection");
    let (b, p) = (v.shape[0], v.shape[1]);
    let both = (0..b).flat_map(|i| [v.row(i), t.row(i)].concat()).collect();
    let logits = apply(&Array::new(&[b, 2 * p], both), "classifier");
    let image_logits = w.contains_key("image_classifier.weight").then(|| apply(&v, "image_classifier"));
    HeadStages { v, t, logits, image_logits }
}
