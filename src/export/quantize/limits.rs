//! How far a quantized model may be from float32, and the schemes that a layer tries in turn.

use crate::bundle::{Precision, Target};
use crate::export::numeric_format::NumericFormat;
use crate::model::{Part, PartMap};
use crate::passes::quantize::Scheme;

/// What must hold on held-out inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Largest relative error of a layer's result; `--max-error`.
    pub layer: f64,
    /// Least cosine of a part's result.
    pub cosine: f64,
    /// Largest difference of a probability.
    pub probability: f64,
    /// Fraction of the allowed distance (`1 - cosine`) that is aimed at: other inputs will do somewhat worse than those
    /// that were held out.
    aim: f64,
    /// The same where few inputs were held out. The rounding of int4 was measured to hit one report up to twice as hard
    /// as another; that of 8 bits is finer than what reports differ in.
    aim_of_few: f64,
}

/// Fewer held-out inputs than this need a safety margin.
const FEW: usize = 3;

impl Limits {
    /// The limits of each part.
    pub fn of_parts(form: NumericFormat, max_error: Option<f64>) -> PartMap<Self> {
        PartMap::from_fn(|part| Self::of_part(form, part, max_error))
    }

    /// The limits of a part: those of the export's precision, or of int8 where an int4 export has 8 bits.
    pub fn of_part(form: NumericFormat, part: Part, max_error: Option<f64>) -> Self {
        let precision = form.precision;
        let own = if precision == Precision::Int4 && part != Part::Text { Precision::Int8 } else { precision };
        let limits = Self { probability: Self::of(precision, None).probability, ..Self::of(own, max_error) };
        match form.target {
            // Static scales come from the calibration inputs: they suit one report less than another, as 4 bits do.
            Target::TensorRt => Self { aim_of_few: 0.4, ..limits },
            _ => limits,
        }
    }

    /// The limits of a precision; `max_error` replaces that of layers.
    pub fn of(precision: Precision, max_error: Option<f64>) -> Self {
        let default = match precision {
            Precision::Fp32 => Self { layer: 1e-4, cosine: 0.999_999, probability: 1e-4, aim: 1.0, aim_of_few: 1.0 },
            Precision::Fp16 => Self { layer: 0.005, cosine: 0.9999, probability: 0.005, aim: 0.75, aim_of_few: 0.75 },
            Precision::Int8 => Self { layer: 0.05, cosine: 0.9995, probability: 0.01, aim: 0.75, aim_of_few: 0.75 },
            Precision::Int4 => Self { layer: 0.15, cosine: 0.99, probability: 0.05, aim: 0.85, aim_of_few: 0.4 },
        };
        Self { layer: max_error.unwrap_or(default.layer), ..default }
    }

    /// How many times the distance `1 - cosine` of a part must shrink to reach its aim; at most 1 when it has. `inputs`
    /// is how many held-out inputs it was measured on.
    pub fn shortfall(&self, distance: f64, inputs: usize) -> f64 {
        let aim = if inputs < FEW { self.aim_of_few } else { self.aim };
        distance / (1.0 - self.cosine) / aim
    }

    /// How many times the distance must shrink to meet the limit itself.
    pub fn excess(&self, distance: f64) -> f64 {
        distance / (1.0 - self.cosine)
    }
}

/// 8 bits on CUDA: of the block sizes that its fp16 kernel supports (32, 64 and 128; the smallest build supports 32
/// alone, and no zero points), the most exact.
const CUDA8: Scheme = Scheme::Blocks { bits: 8, block: 32 };

/// The schemes that a linear layer of `part` tries, from the smallest to the most exact.
pub(super) fn ladder(form: NumericFormat, part: Part) -> &'static [Scheme] {
    const SURE: [Scheme; 2] = [Scheme::Fp16Weight, Scheme::Fp32];
    const INT8: [Scheme; 4] = [Scheme::INT8, Scheme::Blocks { bits: 8, block: 32 }, SURE[0], SURE[1]];
    const INT4: [Scheme; 6] = [
        Scheme::Blocks { bits: 4, block: 64 },
        Scheme::Blocks { bits: 4, block: 32 },
        INT8[0],
        INT8[1],
        SURE[0],
        SURE[1],
    ];
    match (form.precision, form.target, part) {
        (Precision::Fp32, _, _) => &[Scheme::Fp32],
        (Precision::Fp16, _, _) => &[Scheme::Fp16, Scheme::Fp32],
        (Precision::Int4, Target::Cpu, Part::Text) => &INT4,
        (Precision::Int8 | Precision::Int4, Target::Cpu, _) => &INT8,
        (Precision::Int4, Target::Cuda, Part::Text) => &[INT4[0], INT4[1], CUDA8, Scheme::Fp16, Scheme::Fp32],
        (Precision::Int8 | Precision::Int4, Target::Cuda, _) => &[CUDA8, Scheme::Fp16, Scheme::Fp32],
        (Precision::Int8 | Precision::Int4, Target::TensorRt, _) => &[Scheme::Int8Tensor, Scheme::Fp16, Scheme::Fp32],
    }
}

/// The rung from which a block starts that was too sensitive on `rung`: the next one that is much more exact.
pub(super) fn next_rung(ladder: &[Scheme], rung: usize) -> Option<usize> {
    let four = |s: &Scheme| matches!(s, Scheme::Blocks { bits: 4, .. });
    let skipped = if ladder.get(rung).is_some_and(four) { ladder.iter().filter(|s| four(s)).count() } else { rung + 1 };
    (skipped < ladder.len()).then_some(skipped)
}

/// The fraction of a block's squared error that is left when its layers go from one scheme to another: measured on
/// layers of LLaMA2-7B's size (int8 0.013, int8 in blocks of 32 0.008, int4 in blocks of 64 0.087).
pub(super) fn error_left(from: Scheme, to: Scheme) -> f64 {
    match (from, to) {
        (Scheme::Int8 { .. }, Scheme::Blocks { bits: 8, .. }) => 0.35,
        (Scheme::Blocks { bits: 4, .. }, Scheme::Int8 { .. } | Scheme::Blocks { bits: 8, .. }) => 0.03,
        _ => 0.0,
    }
}
