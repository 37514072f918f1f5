//! How a linear layer can compute, and its size.

use serde::{Deserialize, Serialize};

/// How one linear layer `y = x W` stores its weight and computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case")]
pub enum Scheme {
    /// Everything in float32.
    Fp32,
    /// The weight stored in fp16 and cast to float32 when the graph is loaded; arithmetic in float32.
    Fp16Weight,
    /// Weight and arithmetic in fp16.
    Fp16,
    /// int8 weights with per-output-channel scales; uint8 activations, quantized per token at run time.
    Int8 {
        /// The byte that stands for 0: 128 for activations of both signs, less where they are rarely below 0.
        zero_point: u8,
    },
    /// A convolution with int8 weights and uint8 activations with static scales, from calibration.
    Int8Static,
    /// int8 weights with per-output-channel scales, int8 activations with one static scale per tensor, from
    /// calibration; both symmetric, as TensorRT needs them.
    Int8Tensor,
    /// Weights of `bits` bits in blocks along the inputs, each with a scale (and 4 bits with a zero point).
    Blocks {
        /// 4 or 8.
        bits: u8,
        /// Inputs of a block.
        block: u16,
    },
}

impl Scheme {
    /// int8 with activations of both signs.
    pub const INT8: Self = Self::Int8 { zero_point: 128 };

    /// Bytes of a weight `[k, n]` with its scales.
    pub fn bytes(self, k: usize, n: usize) -> u64 {
        let (k, n) = (k as u64, n as u64);
        match self {
            Self::Fp32 => 4 * k * n,
            Self::Fp16Weight | Self::Fp16 => 2 * k * n,
            Self::Int8 { .. } | Self::Int8Static | Self::Int8Tensor => k * n + 4 * n,
            Self::Blocks { bits, block } => {
                let (bits, block) = (u64::from(bits), u64::from(block));
                let blocks = k.div_ceil(block);
                let zero_points = if bits == 4 { n * blocks.div_ceil(2) } else { 0 };
                n * blocks * (block * bits / 8 + 4) + zero_points
            }
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fp32 => f.write_str("fp32"),
            Self::Fp16Weight => f.write_str("fp16 weight"),
            Self::Fp16 => f.write_str("fp16"),
            Self::Int8 { zero_point: 128 } => f.write_str("int8"),
            Self::Int8 { .. } => f.write_str("int8 shifted"),
            Self::Int8Static => f.write_str("int8 static"),
            Self::Int8Tensor => f.write_str("int8 tensor"),
            Self::Blocks { bits, block } => write!(f, "int{bits}/{block}"),
        }
    }
}
