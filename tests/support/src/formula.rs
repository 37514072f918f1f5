//! Weights of a language model made from a seed by a formula that Python computes alike
//! (`tests/scripts/language_models.py`).

use brain_adapter::tensor::LazyTensor;

/// The tensor of that name: uniform numbers around 0, of a norm around 1, from a linear congruential generator that
/// begins with the name's FNV-1a hash.
pub fn formula_weight(name: &str, shape: &[usize], seed: u64) -> LazyTensor {
    let mut state = name.bytes().fold(14_695_981_039_346_656_037 ^ seed, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
    });
    let norm = name.ends_with("norm.weight");
    let scale = if norm || shape.len() == 1 { 0.5 } else { 2.5 / (shape[shape.len() - 1] as f64).sqrt() };
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (f64::from(u8::from(norm)) + ((state >> 40) as f64 / f64::from(1 << 23) - 1.0) * scale) as f32
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    LazyTensor::from_f32(shape, &values)
}
