//! AdamW on the parameters.

use std::collections::BTreeMap;

use super::state::State;
use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::model::optimizer::{Parameter, adamw};
use crate::onnx::to_bytes;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::Tensor;
use crate::train::engine::Parameters;

/// The optimizer's graph in ONNX Runtime's hands.
pub(super) struct Optimizer {
    session: Session,
    names: Vec<String>,
}

impl Optimizer {
    /// For the parameters that have moments in `state`.
    pub fn new(runtime: &Runtime, options: &SessionOptions, adam: &AdamW, state: &State) -> Result<Self> {
        let names: Vec<String> = state.moments.keys().cloned().collect();
        let parameter = |name: &String| {
            let shape = state.parameters.get(name).map(|t| t.shape().to_vec()).unwrap_or_default();
            Parameter { name: name.clone(), shape }
        };
        let graph = adamw(&names.iter().map(parameter).collect::<Vec<_>>(), adam)?;
        Ok(Self { session: Session::open_bytes(runtime, &to_bytes(&graph)?, "optimizer", options)?, names })
    }

    /// Takes one step: `state`'s parameters, moments and step number move.
    pub fn step(&mut self, state: &mut State, gradients: &Parameters, rate: f32) -> Result<()> {
        let lost = |name: &str| Error::new(Code::RUNTIME_RUN, format!("the step lacks `{name}`"));
        let (rate, number) = (vector(rate), Tensor::I64(ndarray::arr1(&[state.step + 1]).into_dyn()));
        let mut feed: Vec<(String, &Tensor)> = vec![("learning_rate".into(), &rate), ("step".into(), &number)];
        for name in &self.names {
            let [first, second] = &state.moments[name];
            feed.push((name.clone(), state.parameters.get(name).ok_or_else(|| lost(name))?));
            feed.push((format!("{name}_grad"), gradients.get(name).ok_or_else(|| lost(name))?));
            feed.extend([(format!("{name}.m"), first), (format!("{name}.v"), second)]);
        }
        let outputs: Vec<String> =
            self.names.iter().flat_map(|n| ["", ".m", ".v"].map(|part| format!("{n}{part}.out"))).collect();
        let feed: Vec<(&str, &Tensor)> = feed.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let mut results = self.session.run(&feed, &outputs)?.into_iter();
        for name in &self.names {
            let (Some(next), Some(first), Some(second)) = (results.next(), results.next(), results.next()) else {
                return Err(lost(name));
            };
            state.parameters.insert(name.clone(), next);
            state.moments.insert(name.clone(), [first, second]);
        }
        state.step += 1;
        Ok(())
    }
}

fn vector(value: f32) -> Tensor {
    Tensor::F32(ndarray::arr1(&[value]).into_dyn())
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

/// The norm of all gradients, and of each by name where that is not a number.
pub(super) fn norm(gradients: &BTreeMap<String, Tensor>) -> (f64, Vec<&str>) {
    let mut total = 0.0;
    let mut broken = Vec::new();
    for (name, gradient) in gradients {
        let square: f64 = gradient.as_f32().unwrap_or_default().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        if !square.is_finite() {
            broken.push(name.as_str());
        }
        total += square;
    }
    (total.sqrt(), broken)
}
