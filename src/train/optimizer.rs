//! AdamW on the parameters.

use std::collections::BTreeMap;

use super::engine::Parameters;
use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::onnx::to_bytes;
use crate::optimizer::{Parameter, adamw};
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::Tensor;

/// Both moments of each trained parameter by state-dict key, f32 of the parameter's shape: the running means of its gradient and
/// of its gradient's square.
pub type Moments = BTreeMap<String, [Tensor; 2]>;

/// Moments before the first step: zeros for each parameter of `parameters` that `trained` chooses.
pub fn moments(parameters: &Parameters, trained: &dyn Fn(&str) -> bool) -> Moments {
    let zeros = |tensor: &Tensor| Tensor::F32(ndarray::ArrayD::zeros(tensor.shape().to_vec()));
    let chosen = parameters.iter().filter(|(name, _)| trained(name));
    chosen.map(|(name, tensor)| (name.clone(), [zeros(tensor), zeros(tensor)])).collect()
}

/// The optimizer's graph ([`crate::optimizer`]), loaded into ONNX Runtime.
pub struct Optimizer {
    session: Session,
    names: Vec<String>,
}

impl Optimizer {
    /// For the parameters that have moments.
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

    /// Takes step number `step` (from 1) with the learning rate `rate`. Where it fails, or leads to what is no number, nothing
    /// has moved.
    ///
    /// # Errors
    /// `runtime.run`; `training.diverged` when a parameter or moment would not be finite, naming it.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        moments: &mut Moments,
        gradients: &Parameters,
        step: i64,
        rate: f32,
    ) -> Result<()> {
        let lost = |name: &str| Error::new(Code::RUNTIME_RUN, format!("the step lacks `{name}`"));
        let rate = Tensor::F32(ndarray::arr1(&[rate]).into_dyn());
        let number = Tensor::I64(ndarray::arr1(&[step]).into_dyn());
        let mut feed: Vec<(String, &Tensor)> = vec![("learning_rate".into(), &rate), ("step".into(), &number)];
        for name in &self.names {
            let [first, second] = moments.get(name).ok_or_else(|| lost(name))?;
            feed.push((name.clone(), parameters.get(name).ok_or_else(|| lost(name))?));
            feed.push((format!("{name}_grad"), gradients.get(name).ok_or_else(|| lost(name))?));
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
                return Err(lost(name));
            };
            parameters.insert(name.clone(), next);
            moments.insert(name.clone(), [first, second]);
        }
        Ok(())
    }
}

/// Whether every number is one.
pub(super) fn finite(tensor: &Tensor) -> bool {
    tensor.as_f32().is_none_or(|values| values.iter().all(|x| x.is_finite()))
}

/// Adds gradients to a sum.
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
