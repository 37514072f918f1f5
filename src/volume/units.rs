//! Units of a file's lengths, and their conversion to millimetres.
//!
//! In: NIfTI's `xyzt_units`. Out: [`Units`], which convert a stored length. The result has the stored field's
//! precision, as in a file whose header was rewritten in millimetres: 0.001 m is 1 mm and not 1.00000005 mm, which
//! would put the last plane outside a grid of the same spacing. Units that make no head of the scan are
//! `nifti.affine`.

use crate::error::{Code, Error, Result};
use crate::tensor::number::{to_f32, to_f64};

/// The part of `xyzt_units` that is about space.
const SPACE: i32 = 0x07;

/// Extents in mm, of the scan's longest side, that are believed where a header says other units than millimetres: the
/// units are wrong more often than a head is this small or this large.
const BELIEVED_MM: std::ops::RangeInclusive<f64> = 50.0..=2000.0;

/// What a file's lengths are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Units {
    Metre,
    /// Millimetres, or not known: then they are millimetres in practice.
    Millimetre,
    Micrometre,
}

impl Units {
    /// The unit of NIfTI's `xyzt_units`.
    pub(super) fn from_xyzt(code: i32) -> Self {
        match code & SPACE {
            1 => Self::Metre,
            3 => Self::Micrometre,
            _ => Self::Millimetre,
        }
    }

    /// A stored length in mm. NIfTI-1 (`version` 1) stores f32, NIfTI-2 f64.
    pub(super) fn to_mm(self, length: f64, version: u8) -> f64 {
        let mm = match self {
            Self::Millimetre => return length,
            Self::Metre => length * 1000.0,
            Self::Micrometre => length / 1000.0,
        };
        if version == 1 { f64::from(to_f32(mm)) } else { mm }
    }

    /// The name, where it is not the millimetre.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Metre => Some("metre"),
            Self::Millimetre => None,
            Self::Micrometre => Some("micrometre"),
        }
    }

    /// A header in metres or micrometres is believed only where it makes a scan of a head's size.
    pub(super) fn check(self, kind: &str, spacing: [f64; 3], shape: [usize; 3]) -> Result<()> {
        let Some(name) = self.name() else { return Ok(()) };
        let sides: [f64; 3] = std::array::from_fn(|a| spacing[a] * to_f64(shape[a]));
        let longest = sides.into_iter().fold(0.0, f64::max);
        // What is not finite is reported as such.
        if longest.is_nan() || longest.is_infinite() || BELIEVED_MM.contains(&longest) {
            return Ok(());
        }
        let ([x, y, z], [a, b, c]) = (spacing, sides);
        Err(Error::new(
            Code::NIFTI_AFFINE,
            format!(
                "xyzt_units says {name}s, so the {kind} gives voxels of {x:.4} × {y:.4} × {z:.4} mm and a scan of \
                 {a:.1} × {b:.1} × {c:.1} mm, which is no head: correct xyzt_units (2 is millimetres)"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_come_out_as_if_stored_in_millimetres() {
        for mm in [1.0f32, 0.9375, 1.2, 0.8, 3.3, 250.0, -127.5] {
            let metres = f64::from(mm / 1000.0);
            assert!(
                (Units::Metre.to_mm(metres, 1) - f64::from(mm)).abs() <= f64::from(mm.abs() * f32::EPSILON),
                "{mm}"
            );
            assert_eq!(Units::Micrometre.to_mm(f64::from(mm * 1000.0), 2), f64::from(mm * 1000.0) / 1000.0);
        }
        assert_eq!(Units::Metre.to_mm(f64::from(0.001f32), 1), 1.0);
        assert_eq!(Units::Millimetre.to_mm(0.1, 1), 0.1);
        // Codes of time (8: seconds) and unknown units of space change nothing.
        let names = [10, 9, 11, 0, 8, 4, 7].map(|code| Units::from_xyzt(code).name());
        assert_eq!(names, [None, Some("metre"), Some("micrometre"), None, None, None, None]);
    }
}
