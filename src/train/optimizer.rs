//! The optimizer step: AdamW on all trained parameters.

use std::collections::BTreeMap;

use super::staged_model::Parameters;
use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::onnx::to_bytes;
use crate::optimizer::{Parameter, adamw};
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::Tensor;

/// Both moments of each trained parameter by state-dict key, f32 of the parameter's shape: the running averages of its
/// gradient and of the square of its gradient.
pub type Moments = BTreeMap<String, [Tensor; 2]>;

/// Moments before the first step: zeros for each parameter of `parameters` that `trained` selects.
pub fn moments(parameters: &Parameters, trained: &dyn Fn(&str) -> bool) -> Moments {
    let zeros = |tensor: &Tensor| Tensor::F32(ndarray::ArrayD::zeros(tensor.shape().to_vec()));
    let selected = parameters.iter().filter(|(name, _)| trained(name));
    selected.map(|(name, tensor)| (name.clone(), [zeros(tensor), zeros(tensor)])).collect()
}

/// AdamW: the graph of [`crate::optimizer`] in an ONNX Runtime session.
pub struct Optimizer {
    session: Session,
    names: Vec<String>,
}

impl Optimizer {
    /// The optimizer of the parameters that have moments.
    ///
    /// # Errors
    /// `config.value` when a constant is impossible; `graph.invalid` when nothing is trained; `runtime.*`.
    pub fn new(runtime: &Runtime, options: &SessionOptions, adam: &AdamW, moments: &Moments) -> Result<Self> {
        let parameter = |(name, [first, _]): (&String, &[Tensor; 2])| Parameter {
            name: name.clone(),
            shape: first.shape().to_vec(),
        };
        let graph = adamw(&moments.iter().map(parameter).collect::<Vec<_>>(), adam)?;
        let session = Session::open_bytes(runtime, &to_bytes(&graph)?, "optimizer", options)?;
        Ok(Self { session, names: moments.keys().cloned().collect() })
    }

    /// Step number `step` (from 1) with the learning rate `rate`: updates parameters and moments in place. `gradients`
    /// holds one of each parameter that has moments, by its state-dict key, f32 of its shape. On an error nothing is
    /// changed.
    ///
    /// # Errors
    /// `runtime.run`; `training.diverged` when a parameter or moment would not be finite, naming it; `internal` when
    /// `parameters` or `gradients` lacks one.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        moments: &mut Moments,
        gradients: &Parameters,
        step: i64,
        rate: f32,
    ) -> Result<()> {
        let missing = |name: &str| Error::internal(format!("optimizer step: `{name}` missing"));
        let rate = Tensor::F32(ndarray::arr1(&[rate]).into_dyn());
        let number = Tensor::I64(ndarray::arr1(&[step]).into_dyn());
        let mut feed: Vec<(String, &Tensor)> = vec![("learning_rate".into(), &rate), ("step".into(), &number)];
        for name in &self.names {
            let [first, second] = moments.get(name).ok_or_else(|| missing(name))?;
            feed.push((name.clone(), parameters.get(name).ok_or_else(|| missing(name))?));
            feed.push((format!("{name}_grad"), gradients.get(name).ok_or_else(|| missing(name))?));
            feed.extend([(format!("{name}.m"), first), (format!("{name}.v"), second)]);
        }
        let outputs: Vec<String> =
            self.names.iter().flat_map(|n| ["", ".m", ".v"].map(|part| format!("{n}{part}.out"))).collect();
        let feed: Vec<(&str, &Tensor)> = feed.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let results = self.session.run(&feed, &outputs)?;
        if let Some((name, _)) = outputs.iter().zip(&results).find(|(_, tensor)| !finite(tensor)) {
            let name = name.trim_end_matches(".out");
            let message = format!("the optimizer makes `{name}` not finite in step {step}: a smaller --lr may help");
            return Err(Error::new(Code::TRAINING_DIVERGED, message));
        }
        let mut results = results.into_iter();
        for name in &self.names {
            let (Some(next), Some(first), Some(second)) = (results.next(), results.next(), results.next()) else {
                return Err(missing(name));
            };
            parameters.insert(name.clone(), next);
            moments.insert(name.clone(), [first, second]);
        }
        Ok(())
    }
}

/// Whether every value is finite.
pub(super) fn finite(tensor: &Tensor) -> bool {
    tensor.as_f32().is_none_or(|values| values.iter().all(|x| x.is_finite()))
}

/// Adds gradients to their sum over micro-batches.
pub(super) fn accumulate(sum: &mut Parameters, more: Parameters) {
    for (name, gradient) in more {
        match (sum.get_mut(&name), gradient) {
            (Some(Tensor::F32(sum)), Tensor::F32(gradient)) => *sum += &gradient,
            (_, gradient) => {
                sum.insert(name, gradient);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_add_up_name_by_name() {
        let one = |name: &str, values: [f32; 2]| {
            Parameters::from([(name.to_owned(), Tensor::f32(&[2], values.to_vec()).unwrap())])
        };
        let mut sum = one("a", [1.0, 2.0]);
        accumulate(&mut sum, one("a", [10.0, 20.0]));
        accumulate(&mut sum, one("b", [5.0, 6.0]));
        accumulate(&mut sum, one("a", [100.0, 200.0]));
        let values = |name: &str| sum[name].as_f32().unwrap().to_vec();
        assert_eq!([values("a"), values("b")], [[111.0, 222.0], [5.0, 6.0]]);
    }
}
