//! The process that takes our steps.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::AdamW;
use brain_adapter::model::Mode;
use brain_adapter::onnx::to_bytes;
use brain_adapter::optimizer::{self, adamw};
use brain_adapter::runtime::{Runtime, Session, SessionOptions};
use brain_adapter::tensor::{LazyTensor, Tensor};
use brain_adapter::train::artifacts::Artifacts;
use brain_adapter::train::{Activations, Batch, GraphOptions, Parameters, StagedModel, TrainingGraphs};
use serde_json::json;

use super::step::STEPS;
use super::{RATE, median, threads};
use crate::process::report as tell;

/// Takes the steps and reports the seconds of one.
pub fn child(artifacts: &Path, case: &Path, activations: &str) -> Result<()> {
    let activations = match activations {
        "recompute" => Activations::Recompute,
        "save" => Activations::Save,
        other => bail!("no such activations: {other}"),
    };
    let artifacts = Artifacts::open(artifacts)?;
    let manifest = &artifacts.manifest;
    let (config, mode) = (&manifest.config, manifest.mode);
    let options = GraphOptions { mode, statistics: manifest.statistics, activations, class_weights: None };
    let graphs = TrainingGraphs::new(config, &options, &|name| mode.trains(name))?;
    // As `ba-train fit` decides: sessions of a large model give their memory back.
    let shrink = config.run_grid().iter().product::<usize>() * config.vision.hidden > 1 << 18;
    let session = SessionOptions { threads: Some(threads()), shrink, ..Default::default() };
    let runtime = Runtime::load(None)?;
    let mut model = StagedModel::new(runtime, session, &graphs, artifacts.frozen()?);
    let mut parameters = starting(&artifacts)?;
    let mut optimizer = Optimizer::new(runtime, &session, &parameters, mode)?;
    let batch = read_case(case)?;
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        let start = Instant::now();
        let step = model.forward_backward(&parameters, &batch, 1.0)?;
        losses.push(step.heads.loss);
        optimizer.step(&mut parameters, &step.gradients)?;
        parameters.extend(step.running_stats);
        seconds.push(start.elapsed().as_secs_f64());
    }
    tell(median(&seconds[1..])?, &json!({"losses": losses, "first": seconds[0]}));
    Ok(())
}

/// The parameters as they were prepared, without the counters of batch norms.
fn starting(artifacts: &Artifacts) -> Result<Parameters> {
    let state = artifacts.state()?;
    let all = state.trainable.iter().chain(&state.frozen).filter(|(name, _)| !name.ends_with(".num_batches_tracked"));
    all.map(|(name, tensor)| Ok((name.clone(), dense(tensor)?))).collect()
}

fn read_case(path: &Path) -> Result<Batch> {
    let case = Checkpoint::open(path)?;
    let find = |name: &str| {
        let found = case.iter().find(|(n, _)| *n == name).map(|(_, tensor)| tensor);
        found.with_context(|| format!("no {name} in the case"))
    };
    let labels = find("labels")?;
    let numbers = labels.bytes()?.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    Ok(Batch {
        volumes: dense(find("volumes")?)?,
        text: Some(dense(find("text")?)?),
        labels: Tensor::i64(labels.shape(), numbers).context("labels")?,
    })
}

fn dense(tensor: &LazyTensor) -> Result<Tensor> {
    Tensor::f32(tensor.shape(), tensor.to_f32()?).context("a tensor fills its shape")
}

/// AdamW's graph with its moments.
struct Optimizer {
    session: Session,
    /// By name: a parameter's moments.
    moments: Vec<(String, [Tensor; 2])>,
    step: i64,
}

impl Optimizer {
    fn new(runtime: &Runtime, options: &SessionOptions, parameters: &Parameters, mode: Mode) -> Result<Self> {
        let trained = || parameters.iter().filter(|(name, _)| mode.trains(name));
        let described = |(name, tensor): (&String, &Tensor)| optimizer::Parameter {
            name: name.clone(),
            shape: tensor.shape().to_vec(),
        };
        let graph = adamw(&trained().map(described).collect::<Vec<_>>(), &AdamW::default())?;
        let zeros = |t: &Tensor| Tensor::f32(t.shape(), vec![0.0; t.shape().iter().product()]).context("zeros");
        let moments = trained().map(|(name, t)| Ok((name.clone(), [zeros(t)?, zeros(t)?]))).collect::<Result<_>>()?;
        Ok(Self { session: Session::open_bytes(runtime, &to_bytes(&graph)?, "optimizer", options)?, moments, step: 0 })
    }

    fn step(&mut self, parameters: &mut Parameters, gradients: &Parameters) -> Result<()> {
        self.step += 1;
        let rate = Tensor::f32(&[1], vec![RATE as f32]).context("a rate")?;
        let number = Tensor::i64(&[1], vec![self.step]).context("a number")?;
        let mut feed: Vec<(String, &Tensor)> = vec![("learning_rate".into(), &rate), ("step".into(), &number)];
        for (name, [first, second]) in &self.moments {
            feed.push((name.clone(), &parameters[name]));
            feed.push((format!("{name}_grad"), gradients.get(name).context("a gradient is missing")?));
            feed.extend([(format!("{name}.m"), first), (format!("{name}.v"), second)]);
        }
        let outputs: Vec<String> =
            self.moments.iter().flat_map(|(n, _)| ["", ".m", ".v"].map(|part| format!("{n}{part}.out"))).collect();
        let feed: Vec<(&str, &Tensor)> = feed.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let mut results = self.session.run(&feed, &outputs)?.into_iter();
        for (name, moments) in &mut self.moments {
            let mut next = || results.next().context("the optimizer gave less than asked for");
            parameters.insert(name.clone(), next()?);
            *moments = [next()?, next()?];
        }
        Ok(())
    }
}
