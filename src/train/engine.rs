//! Runs the stages of [`Graphs`](super::Graphs) with ONNX Runtime, there and back.

use std::collections::BTreeMap;

use super::graphs::{Graphs, Part, numbered};
use super::saved_tensor::Stash;
use super::tensors::{first, rows, stack};
use crate::error::{Code, Error, Result};
use crate::graph::Graph;
use crate::passes::autodiff::gradient_of;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::{LazyTensor, Tensor, TensorView};

/// Tensors by state-dict key.
pub type Parameters = BTreeMap<String, Tensor>;

/// The frozen transformer's weights by initializer name, where they lie.
pub struct Frozen(BTreeMap<String, Weight>);

enum Weight {
    Mapped(LazyTensor),
    Held(Tensor),
}

impl Frozen {
    /// Takes float32 tensors; those that lie in a mapped file as they are stay there.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn new(tensors: impl IntoIterator<Item = (String, LazyTensor)>) -> Result<Self> {
        let weight = |tensor: LazyTensor| {
            if tensor.as_f32().is_some() {
                return Ok(Weight::Mapped(tensor));
            }
            let held = Tensor::f32(tensor.shape(), tensor.to_f32()?);
            held.map(Weight::Held)
                .ok_or_else(|| Error::new(Code::CHECKPOINT_CORRUPT, "a tensor does not fill its shape"))
        };
        tensors.into_iter().map(|(name, tensor)| Ok((name, weight(tensor)?))).collect::<Result<_>>().map(Self)
    }

    /// Gives a weight's pages back: they are in the file, and in the system's cache where there is room.
    fn release(&self, name: &str) {
        if let Some(Weight::Mapped(tensor)) = self.0.get(name) {
            tensor.release();
        }
    }

    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        match self.0.get(name)? {
            Weight::Mapped(tensor) => Some(TensorView::F32(tensor.shape(), tensor.as_f32()?)),
            Weight::Held(tensor) => TensorView::of(tensor),
        }
    }
}

/// Some subjects, as the model takes them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// f32 `[batch, D, H, W]`.
    pub volumes: Tensor,
    /// f32 `[batch, text.hidden]`, unless the image stands alone.
    pub text: Option<Tensor>,
    /// i64 `[batch]`.
    pub labels: Tensor,
}

/// What the heads make of a batch.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The loss.
    pub loss: f32,
    /// f32 `[batch, labels]`.
    pub logits: Tensor,
    /// f32 `[batch, projection.dim]`.
    pub v: Tensor,
    /// f32 `[batch, projection.dim]`, where there are reports.
    pub t: Option<Tensor>,
}

/// An outcome with its way back.
#[derive(Clone, Debug)]
pub struct Step {
    /// Of the way there.
    pub outcome: Outcome,
    /// The gradient of `scale · loss` by each trained parameter.
    pub gradients: Parameters,
    /// The moved running statistics.
    pub moved: Parameters,
}

/// A graph that is loaded when it is first run.
struct Lazy {
    graph: Graph,
    session: Option<Session>,
}

impl Lazy {
    fn new(graph: &Graph) -> Self {
        Self { graph: graph.clone(), session: None }
    }

    fn reads(&self, name: &str) -> bool {
        self.graph.inputs.iter().any(|&id| self.graph.value(id).name == name)
    }

    fn names(&self, ids: &[crate::graph::ValueId]) -> Vec<String> {
        ids.iter().map(|&id| self.graph.value(id).name.clone()).collect()
    }

    /// Runs the graph; `find` gives each input by name. Results come in the order of the graph's outputs.
    fn run<'a>(
        &mut self,
        context: &Context,
        find: &dyn Fn(&str) -> Option<TensorView<'a>>,
    ) -> Result<Vec<(String, Tensor)>> {
        if self.session.is_none() {
            let bytes = crate::onnx::to_bytes(&self.graph)?;
            self.session = Some(Session::open_bytes(context.runtime, &bytes, &self.graph.name, &context.options)?);
        }
        let (inputs, outputs) = (self.names(&self.graph.inputs), self.names(&self.graph.outputs));
        let mut feed = Vec::with_capacity(inputs.len());
        for name in &inputs {
            let missing = || Error::new(Code::RUNTIME_RUN, format!("graph `{}` lacks `{name}`", self.graph.name));
            feed.push((name.as_str(), find(name).ok_or_else(missing)?));
        }
        let wanted: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let session = self.session.as_mut().expect("loaded above");
        let results = session.run_views(&feed, &wanted)?;
        Ok(outputs.into_iter().zip(results).collect())
    }
}

struct Context {
    runtime: &'static Runtime,
    options: SessionOptions,
}

/// A stage of the transformer in ONNX Runtime's hands.
struct Stage {
    part: Part,
    forward: Lazy,
    backward: Lazy,
}

/// What a stage keeps for its way back, by name.
type Kept = Vec<(String, Stash)>;

impl Stage {
    fn new(part: &Part) -> Self {
        let (forward, backward) = (Lazy::new(&part.graphs.forward), Lazy::new(&part.graphs.backward));
        Self { part: part.clone(), forward, backward }
    }

    /// Runs the stage on `x`; `block` is the number that its weights have. Gives its result, and what must be kept where
    /// there is a way back.
    fn forward(
        &mut self,
        context: &Context,
        frozen: &Frozen,
        block: usize,
        x: Tensor,
        back: bool,
    ) -> Result<(Tensor, Kept)> {
        let input = self.part.input.clone();
        let results = self.forward.run(context, &|name| match name == input {
            true => TensorView::of(&x),
            false => frozen.view(&numbered(name, block)),
        })?;
        self.done(context, frozen, block);
        let mut results = results.into_iter();
        let y = results.next().ok_or_else(|| Error::new(Code::RUNTIME_RUN, "a stage gave no result"))?.1;
        let mut kept = Kept::new();
        for (name, saved) in results.filter(|_| back) {
            kept.push((name, Stash::new(saved)?));
        }
        if back && self.backward.reads(&input) {
            kept.push((input, Stash::new(x)?));
        }
        Ok((y, kept))
    }

    /// The gradient of the stage's input from that of its result.
    fn backward(
        &mut self,
        context: &Context,
        frozen: &Frozen,
        block: usize,
        kept: &Kept,
        dy: &Tensor,
    ) -> Result<Tensor> {
        let seed = gradient_of(&self.part.output);
        let results = self.backward.run(context, &|name| {
            if name == seed {
                return TensorView::of(dy);
            }
            let own = kept.iter().find(|(n, _)| n == name);
            own.map_or_else(|| frozen.view(&numbered(name, block)), |(_, stash)| stash.view())
        })?;
        self.done(context, frozen, block);
        first(results)
    }

    /// A large stage's weights are not needed again soon.
    fn done(&self, context: &Context, frozen: &Frozen, block: usize) {
        if context.options.shrink {
            self.part.weights.iter().for_each(|name| frozen.release(&numbered(name, block)));
        }
    }
}

/// The model as it is trained.
pub struct Engine {
    context: Context,
    frozen: Frozen,
    adapter: Option<[Lazy; 2]>,
    adapter_eval: Lazy,
    stages: Vec<Stage>,
    /// The stage of each step along the transformer, and its block's number.
    route: Vec<(usize, usize)>,
    loss: Lazy,
    loss_eval: Lazy,
    /// The heads are small, and run often: what they take may stay.
    heads: Context,
}

impl Engine {
    /// Puts the stages into ONNX Runtime's hands; each is loaded when it is first run.
    pub fn new(runtime: &'static Runtime, options: SessionOptions, graphs: &Graphs, frozen: Frozen) -> Self {
        let trunk = &graphs.trunk;
        let mut stages = vec![Stage::new(&trunk.embed)];
        stages.extend(trunk.block.iter().map(Stage::new));
        stages.push(Stage::new(&trunk.last));
        let blocks = (0..trunk.repeats).map(|block| (1, block));
        let route = std::iter::once((0, 0)).chain(blocks).chain([(stages.len() - 1, trunk.repeats)]).collect();
        let pair = |d: &crate::passes::autodiff::Differentiated| [Lazy::new(&d.forward), Lazy::new(&d.backward)];
        Self {
            context: Context { runtime, options },
            heads: Context { runtime, options: SessionOptions { shrink: false, ..options } },
            frozen,
            adapter: graphs.adapter.as_ref().map(pair),
            adapter_eval: Lazy::new(&graphs.adapter_eval),
            stages,
            route,
            loss: Lazy::new(&graphs.loss),
            loss_eval: Lazy::new(&graphs.loss_eval),
        }
    }

    /// What the transformer makes of each image `[batch, out, H, W]`: `vision` f32 `[batch, hidden]`, and what is kept of each.
    fn look(&mut self, images: Vec<Tensor>, back: bool) -> Result<(Tensor, Vec<Vec<Kept>>)> {
        let (mut seen, mut kept) = (Vec::new(), Vec::new());
        for image in images {
            let (mut x, mut along) = (image, Vec::new());
            for &(stage, block) in &self.route {
                let (y, k) = self.stages[stage].forward(&self.context, &self.frozen, block, x, back)?;
                along.push(k);
                x = y;
            }
            seen.push(x);
            kept.push(along);
        }
        Ok((stack(&seen)?, kept))
    }

    /// `vision` f32 `[batch, hidden]` of volumes f32 `[batch, D, H, W]`, with the adapter's running statistics.
    ///
    /// # Errors
    /// `runtime.run`.
    pub fn features(&mut self, parameters: &Parameters, volumes: &Tensor) -> Result<Tensor> {
        let images = self.adapter_eval.run(&self.context, &|name| match name {
            "volume" => TensorView::of(volumes),
            name => parameters.get(name).and_then(TensorView::of),
        })?;
        Ok(self.look(rows(&first(images)?)?, false)?.0)
    }

    /// The heads' outcome for `vision` f32 `[batch, hidden]`.
    ///
    /// # Errors
    /// `runtime.run`.
    pub fn outcome(
        &mut self,
        parameters: &Parameters,
        vision: &Tensor,
        text: Option<&Tensor>,
        labels: &Tensor,
    ) -> Result<Outcome> {
        let find = |name: &str| head_input(name, parameters, vision, text, labels, None);
        outcome(&mut self.loss_eval.run(&self.heads, &find)?)
    }

    /// One way there and back of the heads alone, for `vision` f32 `[batch, hidden]`: gradients of `scale · loss`.
    ///
    /// # Errors
    /// `runtime.run`.
    pub fn head_step(
        &mut self,
        parameters: &Parameters,
        vision: &Tensor,
        text: Option<&Tensor>,
        labels: &Tensor,
        scale: f32,
    ) -> Result<Step> {
        let scale = Tensor::F32(ndarray::arr0(scale).into_dyn());
        let find = |name: &str| head_input(name, parameters, vision, text, labels, Some(&scale));
        let mut results = self.loss.run(&self.heads, &find)?;
        let outcome = outcome(&mut results)?;
        let gradients = results.into_iter().filter_map(|(name, t)| Some((name.strip_prefix("d.")?.to_owned(), t)));
        Ok(Step { outcome, gradients: gradients.collect(), moved: Parameters::new() })
    }

    /// One way there and back of the whole model: gradients of `scale · loss`.
    ///
    /// # Errors
    /// `runtime.run`.
    pub fn step(&mut self, parameters: &Parameters, batch: &Batch, scale: f32) -> Result<Step> {
        let Some([forward, _]) = &mut self.adapter else {
            let vision = self.features(parameters, &batch.volumes)?;
            return self.head_step(parameters, &vision, batch.text.as_ref(), &batch.labels, scale);
        };
        let mut results = forward.run(&self.context, &|name| match name {
            "volume" => TensorView::of(&batch.volumes),
            name => parameters.get(name).and_then(TensorView::of),
        })?;
        let at = results.iter().position(|(name, _)| name == "adapter");
        let image = results.remove(at.ok_or_else(|| Error::new(Code::RUNTIME_RUN, "the adapter gave no result"))?).1;
        let (moved, saved): (Vec<_>, Vec<_>) = results.into_iter().partition(|(name, _)| name.ends_with(".out"));
        let mut kept_of_adapter = Kept::new();
        for (name, tensor) in saved {
            kept_of_adapter.push((name, Stash::new(tensor)?));
        }
        let images = rows(&image)?;
        drop(image);
        let (vision, kept) = self.look(images, true)?;
        let mut step = self.head_step(parameters, &vision, batch.text.as_ref(), &batch.labels, scale)?;
        let d_vision = step.gradients.remove("vision");
        let d_vision =
            d_vision.ok_or_else(|| Error::new(Code::RUNTIME_RUN, "the loss gave no gradient of `vision`"))?;
        let d_image = self.look_back(kept, &d_vision)?;
        let Some([_, backward]) = &mut self.adapter else { return Ok(step) };
        let seed = gradient_of("adapter");
        let gradients = backward.run(&self.context, &|name| match name {
            "volume" => TensorView::of(&batch.volumes),
            name if name == seed => TensorView::of(&d_image),
            name => {
                let own = kept_of_adapter.iter().find(|(n, _)| n == name);
                own.map_or_else(|| parameters.get(name).and_then(TensorView::of), |(_, stash)| stash.view())
            }
        })?;
        let gradients = gradients.into_iter().filter_map(|(name, t)| Some((name.strip_prefix("d.")?.to_owned(), t)));
        step.gradients.extend(gradients);
        step.moved = moved.into_iter().filter_map(|(n, t)| Some((n.strip_suffix(".out")?.to_owned(), t))).collect();
        Ok(step)
    }

    /// The gradient of the images from that of `vision` `[batch, hidden]`. What was kept is let go on the way.
    fn look_back(&mut self, kept: Vec<Vec<Kept>>, d_vision: &Tensor) -> Result<Tensor> {
        let mut images = Vec::new();
        for (mut along, mut d) in kept.into_iter().zip(rows(d_vision)?) {
            for &(stage, block) in self.route.iter().rev() {
                let kept = along.pop().unwrap_or_default();
                d = self.stages[stage].backward(&self.context, &self.frozen, block, &kept, &d)?;
            }
            images.push(d);
        }
        stack(&images)
    }
}

fn head_input<'a>(
    name: &str,
    parameters: &'a Parameters,
    vision: &'a Tensor,
    text: Option<&'a Tensor>,
    labels: &'a Tensor,
    scale: Option<&'a Tensor>,
) -> Option<TensorView<'a>> {
    let tensor = match name {
        "vision" => Some(vision),
        "text" => text,
        "labels" => Some(labels),
        "d.loss" => scale,
        name => parameters.get(name),
    };
    tensor.and_then(TensorView::of)
}

/// Takes the outcome out of a run's results.
fn outcome(results: &mut Vec<(String, Tensor)>) -> Result<Outcome> {
    let mut take = |wanted: &str| {
        let at = results.iter().position(|(name, _)| name == wanted)?;
        Some(results.remove(at).1)
    };
    let missing = || Error::new(Code::RUNTIME_RUN, "the loss gave no result");
    let loss = take("loss").and_then(|t| t.as_f32()?.first().copied()).ok_or_else(missing)?;
    let (logits, v) = (take("logits").ok_or_else(missing)?, take("v").ok_or_else(missing)?);
    Ok(Outcome { loss, logits, v, t: take("t") })
}
