//! Meta's row order of the q and k projections (model.md, "Text").

use super::Array;

/// HF rows → Meta rows of a q or k projection `[heads·d, I]`: HF keeps a head's rotary pair at rows i and i + d/2,
/// Meta at rows 2i and 2i + 1. `heads` is the KV head count for k.
pub fn interleave(w: &Array, heads: usize) -> Array {
    permute(w, heads, |half, r| r / 2 + r % 2 * half)
}

/// Meta rows → HF rows; the inverse of [`interleave`].
pub fn split_halves(w: &Array, heads: usize) -> Array {
    permute(w, heads, |half, r| r % half * 2 + r / half)
}

/// Row r of each head comes from that head's row `source(d/2, r)`.
fn permute(w: &Array, heads: usize, source: impl Fn(usize, usize) -> usize) -> Array {
    let (rows, d) = (w.shape[0], w.shape[0] / heads);
    let data = (0..rows).flat_map(|r| w.row(r / d * d + source(d / 2, r % d)).iter().copied()).collect();
    Array::new(&w.shape, data)
}
