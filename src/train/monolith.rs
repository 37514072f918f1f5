//! The stages put together: one graph that trains the model in any ONNX Runtime, Microsoft's training runtime among them.
//!
//! Inputs and outputs are those of the contract (`training_model.onnx`, `eval_model.onnx`): `volume`, `text` (not in the mode
//! `mri`), `labels`; then every parameter by its state-dict key, also those that the mode does not read; then for each
//! trained one `NAME_grad.accumulation.buffer`; `lazy_reset_grad`. Outputs `loss`, `logits`; for each trained parameter
//! `NAME_grad.accumulation.out` and `accumulated.NAME_grad`; the moved running statistics `NAME.out`. Standard operators, and the
//! accumulator, which is also a function of standard ones.
//!
//! A runtime orders nodes as it likes and merges equal ones, which would undo the recomputation: so a stage's way back reads
//! its input through a barrier, a copy that depends on the gradient from above.

use std::collections::{BTreeMap, HashMap};

use super::graphs::{Graphs, Part, numbered};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Dim, Graph, Op, ValueId};
use crate::model::Mode;
use crate::passes::autodiff::gradient_of;
use crate::passes::{Scores, decompose_attention};
use crate::tensor::{DType, LazyTensor};

/// Rows of queries whose scores are held at once.
const ROWS: usize = 512;

/// A parameter of the checkpoint.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its state-dict key.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trained: bool,
}

/// What the monolithic graphs are made of.
pub struct Monolith<'a> {
    /// The model.
    pub config: &'a Config,
    /// What is trained.
    pub mode: Mode,
    /// The stages.
    pub graphs: &'a Graphs,
    /// Every parameter of the checkpoint, in order.
    pub parameters: &'a [Parameter],
    /// The frozen transformer's weights by initializer name.
    pub frozen: &'a BTreeMap<String, LazyTensor>,
}

/// A graph under way.
struct Assembly<'a> {
    g: Builder,
    frozen: &'a BTreeMap<String, LazyTensor>,
    known: HashMap<String, ValueId>,
}

impl Monolith<'_> {
    /// `training_model.onnx`.
    ///
    /// # Errors
    /// `graph.invalid` when stages do not fit together: a defect of this crate.
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
        let (loss, path) = self.look(&mut a, made["adapter"], &self.graphs.loss)?;
        let mut gradients: HashMap<String, ValueId> = loss.clone();
        if let Some(adapter) = &self.graphs.adapter {
            let mut d = loss[&gradient_of("vision")];
            for ((part, block), x) in self.route().into_iter().zip(path).rev() {
                let x = barrier(&mut a.g, x, d)?;
                let given = HashMap::from([(part.input.clone(), x), (gradient_of(&part.output), d)]);
                let found = a.add(&part.graphs.backward, block, Some(&given))?;
                d = found[&gradient_of(&part.input)];
            }
            let volume = barrier(&mut a.g, a.known["volume"], d)?;
            let given = HashMap::from([("volume".to_owned(), volume), (gradient_of("adapter"), d)]);
            gradients.extend(a.add(&adapter.backward, 0, Some(&given))?);
        }
        a.g.output("loss", loss["loss"])?;
        a.g.output("logits", loss["logits"])?;
        let mut sums = Vec::new();
        for (p, buffer) in trained.iter().zip(buffers) {
            let gradient = gradients.get(&gradient_of(&p.name)).copied().ok_or_else(|| lost(&p.name))?;
            let [flag, sum] = a.g.accumulate(buffer, gradient, reset)?;
            a.g.output(&format!("{}_grad.accumulation.out", p.name), flag)?;
            sums.push((format!("accumulated.{}_grad", p.name), sum));
        }
        sums.into_iter().try_for_each(|(name, sum)| a.g.output(&name, sum))?;
        let mut moved: Vec<(&String, &ValueId)> = made.iter().filter(|(name, _)| name.ends_with(".out")).collect();
        moved.sort();
        moved.into_iter().try_for_each(|(name, &id)| a.g.output(name, id))?;
        a.g.finish()
    }

    /// `eval_model.onnx`: batch norms by their running statistics.
    ///
    /// # Errors
    /// As [`Self::training`].
    pub fn evaluation(&self) -> Result<Graph> {
        let mut a = self.begin("evaluation")?;
        let made = a.add(&self.graphs.adapter_eval, 0, None)?;
        let (loss, _) = self.look(&mut a, made["adapter"], &self.graphs.loss_eval)?;
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
    fn route(&self) -> Vec<(&Part, usize)> {
        let trunk = &self.graphs.trunk;
        let blocks = trunk.block.iter().flat_map(|block| (0..trunk.repeats).map(move |n| (block, n)));
        std::iter::once((&trunk.embed, 0)).chain(blocks).chain([(&trunk.last, trunk.repeats)]).collect()
    }

    /// Transformer and heads over `image`; gives the heads' results and each stage's input.
    fn look(
        &self,
        a: &mut Assembly<'_>,
        image: ValueId,
        loss: &Graph,
    ) -> Result<(HashMap<String, ValueId>, Vec<ValueId>)> {
        let (mut x, mut path) = (image, Vec::new());
        for (part, block) in self.route() {
            path.push(x);
            let given = HashMap::from([(part.input.clone(), x)]);
            x = a.add(&part.graphs.forward, block, Some(&given))?[&part.output];
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

    /// Adds a stage; its inputs are `given`, or known, or frozen weights. Gives its results by name.
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
            let weight = numbered(name, block);
            let own = given.and_then(|given| given.get(name)).or_else(|| self.known.get(&weight)).copied();
            inputs.push(match (own, self.frozen.get(&weight)) {
                (Some(id), _) => id,
                (None, Some(tensor)) => {
                    let id = self.g.weight(&weight, tensor.clone());
                    self.known.insert(weight, id);
                    id
                }
                (None, None) => return Err(lost(&weight)),
            });
        }
        let scope = format!("{}.{block}", graph.name);
        let results = self.g.scope(&scope, |g| g.inline(&graph, &inputs))?;
        let names = graph.outputs.iter().map(|&id| graph.value(id).name.clone());
        Ok(names.zip(results).collect())
    }
}

fn lost(name: &str) -> Error {
    Error::new(Code::GRAPH_INVALID, format!("the training graph has no `{name}`"))
}

/// `x` as another value that needs `d`: no runtime can merge what is computed from it with what was computed from `x`, nor
/// compute it before `d` is there. Integers, so that a NaN in `d` changes nothing.
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
