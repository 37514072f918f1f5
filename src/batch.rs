//! `Volume` and `Tokens` → the tensors that graphs take.
//!
//! Layer 3. `volume` f32 `[1, D, H, W]`; `input_ids` and `attention_mask` i64 `[1, tokens]`, without padding.

use ndarray::ArrayD;

use crate::tensor::Tensor;
use crate::text::Tokens;
use crate::volume::Volume;

/// The input `volume` of one scan; takes the voxels over without a copy.
///
/// # Panics
/// Never for a `Volume` made by this crate: its voxels fill its shape.
pub fn volume(volume: Volume) -> Tensor {
    let [d, h, w] = volume.shape;
    Tensor::f32(&[1, d, h, w], volume.voxels).expect("a volume's voxels fill its shape")
}

/// The inputs `input_ids` and `attention_mask` of one report.
pub fn report(tokens: &Tokens) -> [Tensor; 2] {
    let shape = vec![1, tokens.ids.len()];
    let mask = ArrayD::from_elem(shape.clone(), 1);
    let ids = Tensor::i64(&shape, tokens.ids.clone()).expect("one id a token");
    [ids, Tensor::I64(mask)]
}
