//! All stages in one graph, which trains the model in any ONNX Runtime, Microsoft's training runtime among them.
//!
//! Inputs and outputs are those that onnxruntime-training expects (`training_model.onnx`, `eval_model.onnx`): `volume`,
//! `text` (not in the mode `mri`), `labels`; then every parameter by its state-dict key, also those that the mode does
//! not read; then for each trained one `NAME_grad.accumulation.buffer`; `lazy_reset_grad`. Outputs `loss`, `logits`;
//! for each trained parameter `NAME_grad.accumulation.out` and `accumulated.NAME_grad`; the updated running statistics
//! `NAME.out`. Standard operators, and the gradient accumulator, which is also a function of standard ones.
//!
//! A runtime reorders nodes and merges equal ones, which would undo the recomputation: so a stage's backward pass reads
//! its input through a barrier, a copy that depends on the gradient of its output.

use std::collections::{BTreeMap, HashMap};

use super::graphs::{TrainingGraphs, TrunkStage, block_weight};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::graph::{Builder, Dim, Graph, Op, ValueId};
use crate::model::Mode;
use crate::passes::autodiff::gradient_of;
use crate::passes::{Scores, decompose_attention};
use crate::tensor::{DType, LazyTensor};

/// Attention scores are computed for so many rows of queries at once.
const ROWS: usize = 512;

/// A parameter of the training checkpoint, as the graphs declare it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// State-dict key.
    pub name: String,
    /// Element type: float32, int64 for counters of batch norms.
    pub dtype: DType,
    /// Shape in the state dict.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trained: bool,
}

/// The inputs of the monolithic graphs.
pub struct Monolith<'a> {
    /// The model's configuration.
    pub config: &'a Config,
    /// Which parameters are trained, by which loss.
    pub mode: Mode,
    /// The stages.
    pub graphs: &'a TrainingGraphs,
    /// Every parameter of the checkpoint, in order.
    pub parameters: &'a [Parameter],
    /// The frozen transformer's weights by initializer name.
    pub frozen: &'a BTreeMap<String, LazyTensor>,
}

/// A graph that is being assembled.
struct Assembly<'a> {
    g: Builder,
    frozen: &'a BTreeMap<String, LazyTensor>,
    known: HashMap<String, ValueId>,
}

impl Monolith<'_> {
    /// `training_model.onnx`.
    ///
    /// # Errors
    /// `graph.invalid`, `internal` when stages do not fit together: a defect of this crate.
    pub fn training(&self) -> Result<Graph> {
        let mut a = self.begin("training")?;
        let trained: Vec<&Parameter> = self.parameters.iter().filter(|p| p.trained).collect();
        let buffers: Vec<ValueId> = trained
            .iter()
            .map(|p| {
                let shape: Vec<Dim> = p.shape.iter().map(|&n| Dim::Known(n)).collect();
                a.g.input(&format!("{}_grad.accumulation.buffer", p.name), p.dtype, &shape)
            })
            .collect();
        let reset = a.g.input("lazy_reset_grad", DType::Bool, &[Dim::Known(1)]);
        let one = a.g.scalar(1.0);
        a.known.insert(gradient_of("loss"), one);
        let adapter = match &self.graphs.adapter {
            Some(adapter) => &adapter.forward,
            None => &self.graphs.adapter_eval,
        };
        let made = a.add(adapter, 0, None)?;
        let (loss, path) = self.add_trunk_and_loss(&mut a, made["adapter"], &self.graphs.loss)?;
        let mut gradients: HashMap<String, ValueId> = loss.clone();
        if let Some(adapter) = &self.graphs.adapter {
            let mut d = loss[&gradient_of("vision")];
            for ((stage, block), x) in self.stages().into_iter().zip(path).rev() {
                let x = barrier(&mut a.g, x, d)?;
                let given = HashMap::from([(stage.input.clone(), x), (gradient_of(&stage.output), d)]);
                let found = a.add(&stage.graphs.backward, block, Some(&given))?;
                d = found[&gradient_of(&stage.input)];
            }
            let volume = barrier(&mut a.g, a.known["volume"], d)?;
            let given = HashMap::from([("volume".to_owned(), volume), (gradient_of("adapter"), d)]);
            gradients.extend(a.add(&adapter.backward, 0, Some(&given))?);
        }
        a.g.output("loss", loss["loss"])?;
        a.g.output("logits", loss["logits"])?;
        let mut sums = Vec::new();
        for (p, buffer) in trained.iter().zip(buffers) {
            let gradient = gradients.get(&gradient_of(&p.name)).copied().ok_or_else(|| missing(&p.name))?;
            let [flag, sum] = a.g.accumulate(buffer, gradient, reset)?;
            a.g.output(&format!("{}_grad.accumulation.out", p.name), flag)?;
            sums.push((format!("accumulated.{}_grad", p.name), sum));
        }
        sums.into_iter().try_for_each(|(name, sum)| a.g.output(&name, sum))?;
        let mut running_stats: Vec<(&String, &ValueId)> =
            made.iter().filter(|(name, _)| name.ends_with(".out")).collect();
        running_stats.sort();
        running_stats.into_iter().try_for_each(|(name, &id)| a.g.output(name, id))?;
        a.g.finish()
    }

    /// `eval_model.onnx`: batch norms by their running statistics.
    ///
    /// # Errors
    /// As [`Self::training`].
    pub fn evaluation(&self) -> Result<Graph> {
        let mut a = self.begin("evaluation")?;
        let made = a.add(&self.graphs.adapter_eval, 0, None)?;
        let (loss, _) = self.add_trunk_and_loss(&mut a, made["adapter"], &self.graphs.loss_eval)?;
        a.g.output("loss", loss["loss"])?;
        a.g.output("logits", loss["logits"])?;
        a.g.finish()
    }

    /// The inputs that both graphs have.
    fn begin(&self, name: &str) -> Result<Assembly<'_>> {
        let mut a = Assembly { g: Builder::new(name), frozen: self.frozen, known: HashMap::new() };
        let (batch, side) = (Dim::BATCH, Dim::Known(self.config.volume.size));
        a.input("volume", DType::F32, &[batch, Dim::Known(self.config.adapter.slices_in), side, side]);
        if self.mode.reads_reports() {
            a.input("text", DType::F32, &[batch, Dim::Known(self.config.text.hidden)]);
        }
        a.input("labels", DType::I64, &[batch]);
        for p in self.parameters {
            let shape: Vec<Dim> = p.shape.iter().map(|&n| Dim::Known(n)).collect();
            a.input(&p.name, p.dtype, &shape);
        }
        Ok(a)
    }

    /// The transformer's stages in the order in which they run, with their blocks' numbers.
    fn stages(&self) -> Vec<(&TrunkStage, usize)> {
        let trunk = &self.graphs.trunk;
        let blocks = trunk.block.iter().flat_map(|block| (0..trunk.repeats).map(move |n| (block, n)));
        std::iter::once((&trunk.embed, 0)).chain(blocks).chain([(&trunk.last, trunk.repeats)]).collect()
    }

    /// Adds transformer and heads after `image`. Returns the heads' outputs by name and each stage's input.
    fn add_trunk_and_loss(
        &self,
        a: &mut Assembly<'_>,
        image: ValueId,
        loss: &Graph,
    ) -> Result<(HashMap<String, ValueId>, Vec<ValueId>)> {
        let (mut x, mut path) = (image, Vec::new());
        for (stage, block) in self.stages() {
            path.push(x);
            let given = HashMap::from([(stage.input.clone(), x)]);
            x = a.add(&stage.graphs.forward, block, Some(&given))?[&stage.output];
        }
        a.known.insert("vision".into(), x);
        Ok((a.add(loss, 0, None)?, path))
    }
}

impl Assembly<'_> {
    fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) {
        let id = self.g.input(name, dtype, shape);
        self.known.insert(name.to_owned(), id);
    }

    /// Adds a stage's graph. Its inputs are `given`, or known values, or frozen weights. Returns its outputs by name.
    fn add(
        &mut self,
        graph: &Graph,
        block: usize,
        given: Option<&HashMap<String, ValueId>>,
    ) -> Result<HashMap<String, ValueId>> {
        let graph = decompose_attention(graph, Scores::Rows(ROWS))?;
        let mut inputs = Vec::with_capacity(graph.inputs.len());
        for &id in &graph.inputs {
            let name = &graph.value(id).name;
            let weight = block_weight(name, block);
            let own = given.and_then(|given| given.get(name)).or_else(|| self.known.get(&weight)).copied();
            inputs.push(match (own, self.frozen.get(&weight)) {
                (Some(id), _) => id,
                (None, Some(tensor)) => {
                    let id = self.g.weight(&weight, tensor.clone());
                    self.known.insert(weight, id);
                    id
                }
                (None, None) => return Err(missing(&weight)),
            });
        }
        let scope = format!("{}.{block}", graph.name);
        let results = self.g.scope(&scope, |g| g.inline(&graph, &inputs))?;
        let names = graph.outputs.iter().map(|&id| graph.value(id).name.clone());
        Ok(names.zip(results).collect())
    }
}

#[track_caller]
fn missing(name: &str) -> Error {
    Error::internal(format!("training graph: `{name}` missing"))
}

/// A copy of `x` that depends on `d`: no runtime can merge what is computed from it with what was computed from `x`,
/// nor compute it before `d`. The dependency goes through integers, so that a NaN in `d` changes nothing.
fn barrier(g: &mut Builder, x: ValueId, d: ValueId) -> Result<ValueId> {
    let shape = g.ty(x).shape.clone();
    let flat = g.reshape(d, &[-1])?;
    let first = g.slice(flat, 0, 0, 1)?;
    let first = g.declare(first, &[Dim::Known(1)])?;
    let zero = g.scalar(0.0);
    let positive = g.binary("Greater", first, zero)?;
    let number = g.cast(positive, DType::I64)?;
    let nothing = g.ints(&[0]);
    let start = g.mul(number, nothing)?;
    let (end, axis) = (g.ints(&[i64::from(i32::MAX)]), g.ints(&[0]));
    let copy = g.node(Op::new("Slice"), &[Some(x), Some(start), Some(end), Some(axis)])?;
    g.declare(copy, &shape)
}
