//! What is kept on disk between runs, in a folder that the user names: features, TensorRT engines, prepacked weights.

pub(crate) mod engines;
pub(crate) mod features;
pub(crate) mod prepacked;
