//! The number format of a quantized bundle, and the device that it is for.

use crate::bundle::{Precision, Target};

/// A precision in the form that a device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::export) struct NumericFormat {
    pub precision: Precision,
    pub target: Target,
}

impl NumericFormat {
    /// The form of an export. Floats have one form for all devices, that of the CPU.
    pub fn of(precision: Precision, target: Target) -> Self {
        let integers = matches!(precision, Precision::Int8 | Precision::Int4);
        Self { precision, target: if integers { target } else { Target::Cpu } }
    }

    /// Whether what is not quantized to integers computes in fp16, as far as that is safe. A CPU is no faster in it.
    #[cfg_attr(
        not(feature = "runtime"),
        allow(dead_code, reason = "nothing is quantized without a runtime to check it")
    )]
    pub fn uses_fp16(self) -> bool {
        self.precision == Precision::Fp16 || self.target != Target::Cpu
    }
}
