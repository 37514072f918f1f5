//! Runs the stages of [`TrainingGraphs`](super::TrainingGraphs) with ONNX Runtime, forward and backward.

use std::collections::BTreeMap;

use super::frozen_weights::FrozenWeights;
use super::graphs::TrainingGraphs;
use super::saved_tensor::{SavedTensor, SavedTensors};
use super::stage::{LazySession, SessionContext, SessionPair, StageSessions};
use super::tensors::{only_output, rows, stack};
use crate::error::{Error, Result};
use crate::passes::autodiff::gradient_of;
use crate::runtime::{Runtime, SessionOptions};
use crate::tensor::{Tensor, TensorView};

/// Float32 tensors by state-dict key: parameters, their gradients, running statistics.
pub type Parameters = BTreeMap<String, Tensor>;

/// The inputs of a training step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// f32 `[batch, D, H, W]`, intensities in `[0, 1]`.
    pub volumes: Tensor,
    /// The reports' features, f32 `[batch, text.hidden]`; none in the mode `mri`.
    pub text: Option<Tensor>,
    /// Classes from 0, i64 `[batch]`.
    pub labels: Tensor,
}

/// The heads' outputs for a batch.
#[derive(Clone, Debug)]
pub struct HeadsOutput {
    /// The loss over the batch, in nats.
    pub loss: f32,
    /// f32 `[batch, labels]`.
    pub logits: Tensor,
    /// The projected image features, f32 `[batch, projection.dim]`.
    pub v: Tensor,
    /// The projected report features, f32 `[batch, projection.dim]`; none in the mode `mri`.
    pub t: Option<Tensor>,
}

/// The result of a forward and a backward pass.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The heads' outputs of the forward pass.
    pub heads: HeadsOutput,
    /// The gradient of `scale · loss` for each trained parameter: its state-dict key, and its shape.
    pub gradients: Parameters,
    /// The updated running statistics of the adapter's batch norms, by state-dict key (`….running_mean`,
    /// `….running_var`); empty where batch norms normalise by the running statistics, and where the adapter is frozen.
    pub running_stats: Parameters,
}

/// The model in training: its stages as ONNX Runtime sessions, its frozen weights in a mapped file.
///
/// Trained parameters belong to the caller and are passed to each call.
pub struct StagedModel {
    context: SessionContext,
    frozen: FrozenWeights,
    /// None where no parameter of the adapter is trained.
    adapter: Option<SessionPair>,
    adapter_eval: LazySession,
    stages: Vec<StageSessions>,
    /// The transformer's stages in the order in which they run: index into `stages`, number of the block.
    order: Vec<(usize, usize)>,
    loss: LazySession,
    loss_eval: LazySession,
    /// The heads are small and run often: their sessions keep their memory.
    heads_context: SessionContext,
}

impl StagedModel {
    /// The model of `graphs`; each session is opened at its first run.
    pub fn new(
        runtime: &'static Runtime,
        options: SessionOptions,
        graphs: &TrainingGraphs,
        frozen: FrozenWeights,
    ) -> Self {
        let trunk = &graphs.trunk;
        let mut stages = vec![StageSessions::new(&trunk.embed)];
        stages.extend(trunk.block.iter().map(StageSessions::new));
        stages.push(StageSessions::new(&trunk.last));
        let blocks = (0..trunk.repeats).map(|block| (1, block));
        let order = std::iter::once((0, 0)).chain(blocks).chain([(stages.len() - 1, trunk.repeats)]).collect();
        Self {
            context: SessionContext { runtime, options },
            heads_context: SessionContext { runtime, options: SessionOptions { shrink: false, ..options } },
            frozen,
            adapter: graphs.adapter.as_ref().map(SessionPair::new),
            adapter_eval: LazySession::new(&graphs.adapter_eval),
            stages,
            order,
            loss: LazySession::new(&graphs.loss),
            loss_eval: LazySession::new(&graphs.loss_eval),
        }
    }

    /// The vision features, f32 `[batch, vision.hidden]`, of volumes f32 `[batch, D, H, W]`, in evaluation mode: batch
    /// norms normalise by their running statistics.
    ///
    /// # Errors
    /// `runtime.*`; `internal` when `parameters` lacks one that the adapter reads.
    pub fn features(&mut self, parameters: &Parameters, volumes: &Tensor) -> Result<Tensor> {
        let images = self.adapter_eval.run(&self.context, &|name| match name {
            "volume" => TensorView::of(volumes),
            name => parameters.get(name).and_then(TensorView::of),
        })?;
        Ok(self.forward_trunk(rows(&only_output(images)?)?, false)?.0)
    }

    /// The heads' outputs, without gradients, for `vision` f32 `[batch, vision.hidden]`, `text` f32 `[batch,
    /// text.hidden]` (none in the mode `mri`) and `labels` i64 `[batch]`.
    ///
    /// # Errors
    /// `runtime.*`; `internal` when `parameters` lacks one that the heads read.
    pub fn evaluate_heads(
        &mut self,
        parameters: &Parameters,
        vision: &Tensor,
        text: Option<&Tensor>,
        labels: &Tensor,
    ) -> Result<HeadsOutput> {
        let find = |name: &str| head_input(name, parameters, vision, text, labels, None);
        take_heads_output(&mut self.loss_eval.run(&self.heads_context, &find)?)
    }

    /// Forward and backward pass of the heads alone, for inputs as in [`Self::evaluate_heads`].
    ///
    /// [`StepOutput::gradients`] has the trained parameters of the heads and, where the adapter is trained, the key
    /// `vision`: the gradient of `vision`, f32 `[batch, vision.hidden]`.
    ///
    /// # Errors
    /// `runtime.*`; `internal` when `parameters` lacks one that the heads read.
    pub fn forward_backward_heads(
        &mut self,
        parameters: &Parameters,
        vision: &Tensor,
        text: Option<&Tensor>,
        labels: &Tensor,
        scale: f32,
    ) -> Result<StepOutput> {
        let scale = Tensor::F32(ndarray::arr0(scale).into_dyn());
        let find = |name: &str| head_input(name, parameters, vision, text, labels, Some(&scale));
        let mut results = self.loss.run(&self.heads_context, &find)?;
        let heads = take_heads_output(&mut results)?;
        Ok(StepOutput { heads, gradients: gradients(results), running_stats: Parameters::new() })
    }

    /// Forward and backward pass of the whole model: the loss, and the gradient of `scale · loss` for each trained
    /// parameter.
    ///
    /// `scale` is 1 over the number of micro-batches whose gradients are summed, so that their sum is that of the mean
    /// loss.
    ///
    /// # Errors
    /// `runtime.*`; `memory.limit` when there is no memory for saved tensors; `internal` when `parameters` lacks one
    /// that the model reads.
    pub fn forward_backward(&mut self, parameters: &Parameters, batch: &Batch, scale: f32) -> Result<StepOutput> {
        let Some(adapter) = &mut self.adapter else {
            let vision = self.features(parameters, &batch.volumes)?;
            return self.forward_backward_heads(parameters, &vision, batch.text.as_ref(), &batch.labels, scale);
        };
        let (image, saved_of_adapter, running_stats) =
            forward_adapter(&mut adapter.forward, &self.context, parameters, &batch.volumes)?;
        let images = rows(&image)?;
        drop(image);
        let (vision, saved) = self.forward_trunk(images, true)?;
        let mut step = self.forward_backward_heads(parameters, &vision, batch.text.as_ref(), &batch.labels, scale)?;
        let d_vision = step.gradients.remove("vision");
        let d_vision = d_vision.ok_or_else(|| Error::internal("loss: gradient of `vision` missing"))?;
        let d_image = self.backward_trunk(saved, &d_vision)?;
        let Some(adapter) = &mut self.adapter else { return Ok(step) };
        let seed = gradient_of("adapter");
        let results = adapter.backward.run(&self.context, &|name| match name {
            "volume" => TensorView::of(&batch.volumes),
            name if name == seed => TensorView::of(&d_image),
            name => {
                let parameter = || parameters.get(name).and_then(TensorView::of);
                saved_of_adapter.get(name).map_or_else(parameter, SavedTensor::view)
            }
        })?;
        step.gradients.extend(gradients(results));
        step.running_stats = running_stats;
        Ok(step)
    }

    /// The frozen transformer on images f32 `[1, out, H, W]`, one at a time. Returns `vision` f32 `[images,
    /// vision.hidden]` and, with `save_for_backward`, what each stage saved for each image.
    fn forward_trunk(
        &mut self,
        images: Vec<Tensor>,
        save_for_backward: bool,
    ) -> Result<(Tensor, Vec<Vec<SavedTensors>>)> {
        let (mut features, mut saved) = (Vec::new(), Vec::new());
        for image in images {
            let (mut x, mut of_stages) = (image, Vec::new());
            for &(stage, block) in &self.order {
                let (y, s) = self.stages[stage].forward(&self.context, &self.frozen, block, x, save_for_backward)?;
                of_stages.push(s);
                x = y;
            }
            features.push(x);
            saved.push(of_stages);
        }
        self.frozen.unchanged()?;
        Ok((stack(&features)?, saved))
    }

    /// The gradient of the images, f32 `[images, out, H, W]`, from that of `vision`, f32 `[images, vision.hidden]`.
    /// Each stage's saved tensors are dropped as soon as it is done.
    fn backward_trunk(&mut self, saved: Vec<Vec<SavedTensors>>, d_vision: &Tensor) -> Result<Tensor> {
        let mut images = Vec::new();
        for (mut of_stages, mut d) in saved.into_iter().zip(rows(d_vision)?) {
            for &(stage, block) in self.order.iter().rev() {
                let saved = of_stages.pop().unwrap_or_default();
                d = self.stages[stage].backward(&self.context, &self.frozen, block, &saved, &d)?;
            }
            images.push(d);
        }
        self.frozen.unchanged()?;
        stack(&images)
    }
}

/// The adapter's forward pass: image f32 `[batch, out, H, W]`, saved tensors, updated running statistics.
fn forward_adapter(
    session: &mut LazySession,
    context: &SessionContext,
    parameters: &Parameters,
    volumes: &Tensor,
) -> Result<(Tensor, SavedTensors, Parameters)> {
    let mut results = session.run(context, &|name| match name {
        "volume" => TensorView::of(volumes),
        name => parameters.get(name).and_then(TensorView::of),
    })?;
    let at = results.iter().position(|(name, _)| name == "adapter");
    let image = results.remove(at.ok_or_else(|| Error::internal("adapter: output missing"))?).1;
    let (mut saved, mut running_stats) = (SavedTensors::default(), Parameters::new());
    for (name, tensor) in results {
        match name.strip_suffix(".out") {
            Some(key) => {
                running_stats.insert(key.to_owned(), tensor);
            }
            None => saved.save(name, tensor)?,
        }
    }
    Ok((image, saved, running_stats))
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

/// Removes the heads' outputs from a run's results.
fn take_heads_output(results: &mut Vec<(String, Tensor)>) -> Result<HeadsOutput> {
    let mut take = |wanted: &str| {
        let at = results.iter().position(|(name, _)| name == wanted)?;
        Some(results.remove(at).1)
    };
    let missing = || Error::internal("heads: output missing");
    let loss = take("loss").and_then(|t| t.as_f32()?.first().copied()).ok_or_else(missing)?;
    let (logits, v) = (take("logits").ok_or_else(missing)?, take("v").ok_or_else(missing)?);
    Ok(HeadsOutput { loss, logits, v, t: take("t") })
}

/// The gradients among a run's results, by the name of what they are the gradient of.
fn gradients(results: Vec<(String, Tensor)>) -> Parameters {
    results.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix("d.")?.to_owned(), tensor))).collect()
}
