//! Conversions between numbers that `From` does not offer, each with a name that says what it does to the value.
//!
//! The parsers of untrusted bytes deny `as`, which wraps and rounds in silence. What they need of it stands here, once.
//! A number that a file claims goes through `TryFrom`, with an error where it does not fit.

#![expect(clippy::as_conversions, reason = "the one place where numbers are converted without a check")]

const _: () = assert!(size_of::<usize>() <= size_of::<u64>() && size_of::<usize>() >= size_of::<u32>());

/// A length as the 64-bit number of files. Exact: no supported machine has longer addresses.
pub(crate) const fn to_u64(n: usize) -> u64 {
    n as u64
}

/// An index of 32 bits or fewer as an index into memory. Exact: no supported machine has shorter addresses.
pub(crate) const fn to_usize(n: u32) -> usize {
    n as usize
}

/// A count as a float: exact up to 2^53, rounded to nearest above.
pub(crate) const fn to_f64(n: usize) -> f64 {
    n as f64
}

/// The nearest float32; beyond its range, infinity (IEEE 754, round to nearest, ties to even).
pub(crate) const fn to_f32(x: f64) -> f32 {
    x as f32
}

/// The integer part of a number that is not negative; NaN and negative numbers give 0, large ones the largest index.
pub(crate) const fn truncate(x: f64) -> usize {
    x as usize
}

/// The integer part of a grey value; below 0 it is 0, above 255 it is 255, and NaN is 0.
pub(crate) const fn to_u8(x: f64) -> u8 {
    x as u8
}

/// The nearest float64 of a 64-bit integer of a file.
pub(crate) trait Widen {
    /// Rounded to nearest where it is beyond 2^53.
    fn widen(self) -> f64;
}

macro_rules! widen {
    ($($number:ty),*) => {
        $(impl Widen for $number {
            fn widen(self) -> f64 {
                self as f64
            }
        })*
    };
}

widen!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_values_are_bounded() {
        assert_eq!([-1.0, 0.9, 254.9, 300.0, f64::NAN].map(to_u8), [0, 0, 254, 255, 0]);
    }

    #[test]
    fn what_does_not_fit_is_rounded_or_bounded_as_said() {
        assert_eq!(to_u64(usize::MAX), u64::try_from(usize::MAX).unwrap());
        assert_eq!(to_usize(u32::MAX), 4_294_967_295);
        assert_eq!(to_f64(1 << 53), 9_007_199_254_740_992.0);
        assert_eq!((to_f32(1e300), to_f32(-1e300)), (f32::INFINITY, f32::NEG_INFINITY));
        assert_eq!(to_f32(1.0 + f64::from(f32::EPSILON) / 2.0), 1.0, "a tie goes to even");
        assert_eq!((truncate(2.9), truncate(-1.0), truncate(f64::NAN), truncate(f64::INFINITY)), (2, 0, 0, usize::MAX));
        assert_eq!((u64::MAX.widen(), i64::MIN.widen()), (18_446_744_073_709_551_615.0, -9_223_372_036_854_775_808.0));
    }
}
