//! What the tests of training share: recorded fixtures as inputs of the trainer.

use std::collections::BTreeMap;

use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::Config;
use brain_adapter::model::adapter::Statistics;
use brain_adapter::model::{Attention, Mode, Stages, Weights, vit};
use brain_adapter::passes::weights_to_inputs;
use brain_adapter::runtime::SessionOptions;
use brain_adapter::tensor::{LazyTensor, Tensor};
use brain_adapter::train::{Activations, Batch, FrozenWeights, GraphOptions, Parameters, StagedModel, TrainingGraphs};

use crate::common::runtime;
use crate::package;

/// Tensors of a file below `tests/data/fixtures` whose names begin with `prefix`, without it.
pub fn lazy(file: &str, prefix: &str) -> BTreeMap<String, LazyTensor> {
    let checkpoint = Checkpoint::open(package("tests/data/fixtures").join(file)).unwrap();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let own = names.into_iter().filter(|n| n.starts_with(prefix));
    own.map(|n| (n[prefix.len()..].to_owned(), checkpoint.get(&n).unwrap().clone())).collect()
}

/// As [`lazy`], float32 ones read.
pub fn tensors(file: &str, prefix: &str) -> BTreeMap<String, Tensor> {
    let read = |t: LazyTensor| Tensor::f32(t.shape(), t.to_f32().unwrap()).unwrap();
    lazy(file, prefix).into_iter().map(|(n, t)| (n, read(t))).collect()
}

/// ‖found − expected‖ / ‖expected‖; absolute where that is 0.
pub fn norm_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let pairs = found.as_f32().unwrap().iter().zip(expected.as_f32().unwrap());
    let (mut difference, mut norm) = (0f64, 0f64);
    for (&f, &e) in pairs {
        difference += (f64::from(f) - f64::from(e)).powi(2);
        norm += f64::from(e).powi(2);
    }
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// Graphs as small as these gain nothing from threads, which on a busy machine wait for each other.
pub fn one_thread() -> SessionOptions {
    SessionOptions { threads: Some(1), ..SessionOptions::default() }
}

/// A small model with a recorded batch.
pub struct Fixture {
    pub config: Config,
    pub parameters: Parameters,
    recorded: BTreeMap<String, Tensor>,
    labels: Vec<i64>,
}

impl Fixture {
    /// `tiny` with the batch of `grads`.
    pub fn tiny() -> Self {
        let config = Config::load(&package("tests/data/fixtures/tiny/config.json")).unwrap();
        let mut parameters = tensors("tiny/weights.safetensors", "heads/");
        parameters.retain(|name, _| !name.ends_with("num_batches_tracked"));
        Self { config, parameters, recorded: tensors("tiny/expected.safetensors", ""), labels: vec![2, 0, 1] }
    }

    pub fn frozen(&self) -> FrozenWeights {
        let weights: Weights = lazy("tiny/weights.safetensors", "vit/").into_iter().collect();
        let graph = vit::build(&self.config, &weights, Attention::Fused, Stages::Output).unwrap();
        FrozenWeights::new(weights_to_inputs(&graph, &|name| !name.starts_with("const.")).unwrap().1).unwrap()
    }

    pub fn model(&self, mode: Mode, statistics: Statistics, activations: Activations) -> StagedModel {
        let options = GraphOptions { mode, statistics, activations, class_weights: None };
        let graphs = TrainingGraphs::new(&self.config, &options, &|name| mode.trains(name)).unwrap();
        StagedModel::new(runtime(), one_thread(), &graphs, self.frozen())
    }

    pub fn batch(&self, mode: Mode) -> Batch {
        Batch {
            volumes: self.recorded["volume"].clone(),
            text: mode.reads_reports().then(|| self.recorded["text"].clone()),
            labels: Tensor::i64(&[self.labels.len()], self.labels.clone()).unwrap(),
        }
    }
}
