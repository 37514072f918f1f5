//! An orientation that the user states, for files that hold none.
//!
//! In: three letters such as `LAS`, the directions that the file's axes run towards. Out: the voxel-to-world matrix
//! (mm, RAS+) of axes that run exactly there, about the volume's centre, as nibabel's base affine has it for LAS.

use std::fmt;
use std::str::FromStr;

use crate::tensor::number::to_f64;

/// The letters of right–left, anterior–posterior and superior–inferior, each the positive direction first.
const LETTERS: [[char; 2]; 3] = [['R', 'L'], ['A', 'P'], ['S', 'I']];

/// Directions that a file's axes run towards, the fastest axis first: R or L, A or P, S or I, each pair once.
///
/// ```
/// use brain_adapter::volume::AxisCodes;
///
/// let codes: AxisCodes = "psr".parse()?;
/// assert_eq!(codes.to_string(), "PSR");
/// assert!("LRS".parse::<AxisCodes>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisCodes {
    /// For each file axis: the world axis it runs along.
    world: [usize; 3],
    /// For each file axis: it runs towards left, posterior or inferior.
    flipped: [bool; 3],
}

impl AxisCodes {
    pub(super) const fn new(world: [usize; 3], flipped: [bool; 3]) -> Self {
        Self { world, flipped }
    }

    /// The matrix of `shape` voxels of `spacing` mm along these directions; the world's origin is their centre.
    pub(super) fn affine(self, spacing: [f64; 3], shape: [usize; 3]) -> [[f64; 4]; 4] {
        let mut affine = [[0.0; 4], [0.0; 4], [0.0; 4], [0.0, 0.0, 0.0, 1.0]];
        for axis in 0..3 {
            let step = if self.flipped[axis] { -spacing[axis] } else { spacing[axis] };
            let row = &mut affine[self.world[axis]];
            row[axis] = step;
            row[3] = -step * to_f64(shape[axis] - 1) / 2.0;
        }
        affine
    }
}

impl fmt::Display for AxisCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = self.world.iter().zip(self.flipped).map(|(&world, flipped)| LETTERS[world][usize::from(flipped)]);
        letters.into_iter().try_for_each(|letter| write!(f, "{letter}"))
    }
}

impl FromStr for AxisCodes {
    type Err = String;

    /// Reads three letters in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an orientation: expected three letters, R or L, A or P and S or I, each pair once, \
                 in the order of the file's axes, such as LAS"
            )
        };
        let letters: Vec<char> = text.trim().to_ascii_uppercase().chars().collect();
        let letters: [char; 3] = letters.try_into().map_err(|_| wrong())?;
        let (mut world, mut flipped, mut taken) = ([0; 3], [false; 3], [false; 3]);
        for (axis, letter) in letters.iter().enumerate() {
            let found = LETTERS.iter().position(|pair| pair.contains(letter)).filter(|&w| !taken[w]);
            let w = found.ok_or_else(wrong)?;
            (world[axis], flipped[axis], taken[w]) = (w, LETTERS[w][1] == *letter, true);
        }
        Ok(Self { world, flipped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_orientations_are_read_and_mean_what_they_say() {
        let mut count = 0;
        for order in ["RAS", "RSA", "ARS", "ASR", "SRA", "SAR"] {
            for flips in 0..8usize {
                let other = |c: char| LETTERS.iter().find(|p| p[0] == c).map(|p| p[1]).unwrap();
                let text: String =
                    order.chars().enumerate().map(|(i, c)| if flips >> i & 1 == 1 { other(c) } else { c }).collect();
                let codes: AxisCodes = text.to_lowercase().parse().unwrap();
                let affine = codes.affine([2.0, 3.0, 4.0], [5, 7, 9]);
                assert_eq!(codes.to_string(), text);
                for (axis, letter) in text.chars().enumerate() {
                    // One step along the axis, in the world.
                    let step = [0, 1, 2].map(|w: usize| affine[w][axis]);
                    let (w, mm) = step.into_iter().enumerate().find(|(_, mm)| *mm != 0.0).unwrap();
                    assert_eq!(
                        (LETTERS[w][usize::from(mm < 0.0)], mm.abs()),
                        (letter, [2.0, 3.0, 4.0][axis]),
                        "{text}"
                    );
                    assert_eq!(step.iter().filter(|mm| **mm != 0.0).count(), 1);
                }
                // The centre voxel is the world's origin.
                for row in &affine[..3] {
                    assert_eq!(row[0] * 2.0 + row[1] * 3.0 + row[2] * 4.0 + row[3], 0.0);
                }
                count += 1;
            }
        }
        assert_eq!(count, 48);
    }

    #[test]
    fn what_is_no_orientation_is_refused() {
        for text in ["", "LA", "LAST", "LRS", "LLL", "XYZ", "L,A,S", "LÄS"] {
            assert!(text.parse::<AxisCodes>().unwrap_err().contains("such as LAS"), "{text}");
        }
    }
}
