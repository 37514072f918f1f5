//! In which numbers, and for which device, a reduced bundle computes.

use crate::bundle::{Precision, Target};

/// A precision in the form of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::export) struct NumericFormat {
    pub precision: Precision,
    pub target: Target,
}

impl NumericFormat {
    /// The form of an export. Floats have one form for all devices: that in which the CPU takes them too.
    pub fn of(precision: Precision, target: Target) -> Self {
        let integers = matches!(precision, Precision::Int8 | Precision::Int4);
        Self { precision, target: if integers { target } else { Target::Cpu } }
    }

    /// Whether what has no integers computes in half precision, as far as that is safe. A CPU is no faster in it.
    #[cfg_attr(not(feature = "runtime"), allow(dead_code, reason = "nothing is reduced without a runtime to judge it"))]
    pub fn halves(self) -> bool {
        self.precision == Precision::Fp16 || self.target != Target::Cpu
    }
}
