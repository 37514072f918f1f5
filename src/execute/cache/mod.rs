//! What is kept on disk between runs, in a folder that the user names: features, TensorRT engines, prepacked weights.

pub(crate) mod engines;
pub(crate) mod features;
pub(crate) mod prepacked;

/// Reads bytes as each kind of record that a cache holds, under this key; which of them they are: features, engines,
/// verified files. For fuzzing.
pub fn records_in(bytes: &[u8], key: &str) -> [bool; 3] {
    let (features, verified) = (features::parse(bytes, key), crate::bundle::parse_verified(bytes, key));
    [features.is_some(), engines::parse(bytes).is_some(), verified.is_some()]
}
