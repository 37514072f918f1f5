//! The hyperparameters of AdamW, named as `torch.optim.AdamW` names them.

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// AdamW's constants. The learning rate is no constant: it is an input of every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// How much the running averages of the gradient and of its square keep at each step, both in `[0, 1)`.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay: a step takes `learning rate · weight_decay` of a parameter away.
    pub weight_decay: f64,
    /// The largest norm that all gradients together may have (they are scaled down to it), or none.
    pub clip: Option<f64>,
}

impl Default for AdamW {
    /// As in PyTorch: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01, no clipping.
    fn default() -> Self {
        Self { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, clip: None }
    }
}

impl AdamW {
    /// Refuses what no step can be made with, as PyTorch does.
    ///
    /// # Errors
    /// `config.value`, naming the constant.
    pub fn validate(&self) -> Result<()> {
        let fail = |what: &str, found: f64, expected: &str| {
            Err(Error::new(Code::CONFIG_VALUE, format!("AdamW's {what} is {found}, expected {expected}")))
        };
        if let Some(beta) = self.betas.into_iter().find(|b| !(0.0..1.0).contains(b)) {
            return fail("beta", beta, "a number from 0 to below 1");
        }
        for (what, value) in [("eps", self.eps), ("weight_decay", self.weight_decay)] {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(what, value, "a number of at least 0");
            }
        }
        match self.clip {
            Some(clip) if !(clip > 0.0 && clip.is_finite()) => fail("clip", clip, "a number above 0, or none"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_constants_are_refused() {
        let good = AdamW::default();
        good.validate().unwrap();
        AdamW { betas: [0.0, 0.0], eps: 0.0, weight_decay: 0.0, clip: Some(1e-3) }.validate().unwrap();
        for (bad, what) in [
            (AdamW { betas: [1.0, 0.9], ..good }, "beta is 1,"),
            (AdamW { betas: [0.9, -0.1], ..good }, "beta is -0.1,"),
            (AdamW { eps: f64::NAN, ..good }, "eps is NaN,"),
            (AdamW { weight_decay: f64::INFINITY, ..good }, "weight_decay is inf,"),
            (AdamW { clip: Some(0.0), ..good }, "clip is 0,"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.code() == Code::CONFIG_VALUE && error.message().contains(what), "{error}");
        }
    }
}
