//! The learning rate over a training.

use std::f64::consts::PI;

use crate::error::{Code, Error, Result};

/// The learning rate over a training: linear warm-up, then constant or a cosine decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The maximum rate.
    pub rate: f64,
    /// The fraction of all steps over which the rate rises to the maximum, linearly.
    pub warmup: f64,
    /// Whether it then falls to 0 along half a cosine (Loshchilov and Hutter 2017), or stays at the maximum.
    pub cosine: bool,
}

impl Schedule {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// `config.value`.
    pub fn validate(&self) -> Result<()> {
        let sound = self.rate > 0.0 && self.rate.is_finite() && (0.0..1.0).contains(&self.warmup);
        let message = || {
            let Self { rate, warmup, .. } = self;
            format!("expected a learning rate above 0 and a warm-up from 0 to below 1, found {rate} and {warmup}")
        };
        if sound { Ok(()) } else { Err(Error::new(Code::CONFIG_VALUE, message())) }
    }

    /// The rate of step `step` (from 1) of `steps`. The first steps of a warm-up of w steps have 1/w, 2/w, … of the
    /// maximum.
    ///
    /// ```
    /// use brain_adapter::train::fit::Schedule;
    ///
    /// let schedule = Schedule { rate: 1e-3, warmup: 0.1, cosine: true };
    /// assert_eq!([1, 2].map(|step| schedule.at(step, 20)), [5e-4, 1e-3]);
    /// ```
    pub fn at(&self, step: i64, steps: i64) -> f32 {
        let warm = (self.warmup * steps as f64).ceil();
        let step = step as f64;
        let share = if step <= warm {
            step / warm
        } else if self.cosine {
            let gone = (step - warm - 1.0) / (steps as f64 - warm).max(1.0);
            0.5 * (1.0 + (PI * gone.clamp(0.0, 1.0)).cos())
        } else {
            1.0
        };
        (self.rate * share) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        let s = Schedule { rate: 1.0, warmup: 0.1, cosine: true };
        let rates: Vec<f32> = (1..=40).map(|step| s.at(step, 40)).collect();
        assert_eq!(&rates[..5], &[0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!(rates[4..].windows(2).all(|w| w[0] > w[1]) && rates[39] > 0.0 && rates[39] < 0.01, "{rates:?}");
        assert!((s.at(23, 40) - 0.5).abs() < 1e-6);
        // A part of a step of warm-up is a step.
        assert_eq!([1, 2, 3].map(|step| s.at(step, 15)), [0.5, 1.0, 1.0]);
        let flat = Schedule { warmup: 0.0, cosine: false, ..s };
        assert!((1..=9).all(|step| flat.at(step, 9) == 1.0));
        assert!(
            Schedule { rate: f64::NAN, ..s }.validate().is_err() && Schedule { warmup: 1.0, ..s }.validate().is_err()
        );
    }
}
