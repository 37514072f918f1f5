//! The sessions of one stage: forward and backward graph, each loaded at its first run.

use super::frozen_weights::FrozenWeights;
use super::graphs::{TrunkStage, block_weight};
use super::saved_tensor::{SavedTensor, SavedTensors};
use super::tensors::only_output;
use crate::error::{Error, Result};
use crate::graph::{Graph, ValueId};
use crate::passes::autodiff::gradient_of;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::{Tensor, TensorView};

/// What sessions are opened with.
pub(super) struct SessionContext {
    pub runtime: &'static Runtime,
    pub options: SessionOptions,
}

/// A graph whose session is opened at its first run.
pub(super) struct LazySession {
    graph: Graph,
    session: Option<Session>,
}

impl LazySession {
    pub fn new(graph: &Graph) -> Self {
        Self { graph: graph.clone(), session: None }
    }

    fn has_input(&self, name: &str) -> bool {
        self.graph.inputs.iter().any(|&id| self.graph.value(id).name == name)
    }

    fn names(&self, ids: &[ValueId]) -> Vec<String> {
        ids.iter().map(|&id| self.graph.value(id).name.clone()).collect()
    }

    /// Runs the graph; `find` gives each input by name. Returns all outputs with their names, in the graph's order.
    pub fn run<'a>(
        &mut self,
        context: &SessionContext,
        find: &dyn Fn(&str) -> Option<TensorView<'a>>,
    ) -> Result<Vec<(String, Tensor)>> {
        if self.session.is_none() {
            let bytes = crate::onnx::to_bytes(&self.graph)?;
            self.session = Some(Session::open_bytes(context.runtime, &bytes, &self.graph.name, &context.options)?);
        }
        let (inputs, outputs) = (self.names(&self.graph.inputs), self.names(&self.graph.outputs));
        let mut feed = Vec::with_capacity(inputs.len());
        for name in &inputs {
            let missing = || Error::internal(format!("graph `{}`: input `{name}` missing", self.graph.name));
            feed.push((name.as_str(), find(name).ok_or_else(missing)?));
        }
        let wanted: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let session = self.session.as_mut().expect("opened above");
        let results = session.run_views(&feed, &wanted)?;
        Ok(outputs.into_iter().zip(results).collect())
    }
}

/// The sessions of a differentiated graph.
pub(super) struct SessionPair {
    pub forward: LazySession,
    pub backward: LazySession,
}

impl SessionPair {
    pub fn new(graphs: &crate::passes::autodiff::Differentiated) -> Self {
        Self { forward: LazySession::new(&graphs.forward), backward: LazySession::new(&graphs.backward) }
    }
}

/// The sessions of a stage of the frozen transformer.
pub(super) struct StageSessions {
    stage: TrunkStage,
    sessions: SessionPair,
}

impl StageSessions {
    pub fn new(stage: &TrunkStage) -> Self {
        Self { stage: stage.clone(), sessions: SessionPair::new(&stage.graphs) }
    }

    /// Runs the stage on `x` with the weights of `block`. Returns the stage's output and, with `save_for_backward`,
    /// what the backward pass needs.
    pub fn forward(
        &mut self,
        context: &SessionContext,
        frozen: &FrozenWeights,
        block: usize,
        x: Tensor,
        save_for_backward: bool,
    ) -> Result<(Tensor, SavedTensors)> {
        let input = self.stage.input.clone();
        let results = self.sessions.forward.run(context, &|name| match name == input {
            true => TensorView::of(&x),
            false => frozen.view(&block_weight(name, block)),
        })?;
        self.release_weights(context, frozen, block);
        let mut results = results.into_iter();
        let y = results.next().ok_or_else(|| Error::internal("forward pass: the stage has no output"))?.1;
        let mut saved = SavedTensors::default();
        for (name, tensor) in results.filter(|_| save_for_backward) {
            saved.save(name, tensor)?;
        }
        if save_for_backward && self.sessions.backward.has_input(&input) {
            saved.save(input, x)?;
        }
        Ok((y, saved))
    }

    /// The gradient of the stage's input, from `dy`, the gradient of its output.
    pub fn backward(
        &mut self,
        context: &SessionContext,
        frozen: &FrozenWeights,
        block: usize,
        saved: &SavedTensors,
        dy: &Tensor,
    ) -> Result<Tensor> {
        let seed = gradient_of(&self.stage.output);
        let results = self.sessions.backward.run(context, &|name| match name == seed {
            true => TensorView::of(dy),
            false => saved.get(name).map_or_else(|| frozen.view(&block_weight(name, block)), SavedTensor::view),
        })?;
        self.release_weights(context, frozen, block);
        only_output(results)
    }

    /// Releases the pages of a large stage's weights: other blocks run before they are needed again.
    fn release_weights(&self, context: &SessionContext, frozen: &FrozenWeights, block: usize) {
        if context.options.shrink {
            self.stage.weights.iter().for_each(|name| frozen.release(&block_weight(name, block)));
        }
    }
}
