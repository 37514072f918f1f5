//! The graphs of training: the model cut into stages, each with its forward and backward graph.
//!
//! ```text
//! volume [batch, D, H, W] ─ adapter ─ image ─┬ for each scan ─ embed ─ block × (layers − 1) ─ last ─┬─ vision ┐
//!                                            └──────────────────────────────────────────────────────┘         ├ loss
//! text [batch, hidden], labels [batch] ───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Each stage is a graph of its own whose weights are inputs. So one pair of sessions runs all blocks, frozen weights
//! stay in one mapped file, and a stage's activations are freed when it is done. Only a stage's input is saved for its
//! backward pass; with [`Activations::Save`] also what is expensive to recompute. The transformer runs one scan at a
//! time: only the adapter (batch norm) and the loss (the contrastive term) depend on the batch. Graphs are built from
//! the configuration; weights are passed by name at run time.

use crate::config::{Config, Norm};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Tail};
use crate::model::adapter::{self, Statistics};
use crate::model::{Attention, Mode, Stages, Weights, keys, loss, vit};
use crate::passes::autodiff::{Differentiated, differentiate, joint};
use crate::passes::weights_to_inputs;

/// What a stage's forward pass saves for its backward pass (activation checkpointing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Its input; everything else is recomputed.
    #[default]
    Recompute,
    /// Also queries, keys, values and the output of attention, the residual sum after it, and outputs of convolutions:
    /// faster, with more memory.
    Save,
}

/// What the graphs depend on, next to the model's configuration.
#[derive(Clone, Debug)]
pub struct GraphOptions {
    /// Which parameters are trained, by which loss.
    pub mode: Mode,
    /// What batch norms normalise by.
    pub statistics: Statistics,
    /// What is saved for the backward pass.
    pub activations: Activations,
    /// Weights of the classes in the classification loss, one a label; none: all equal.
    pub class_weights: Option<Vec<f32>>,
}

/// One stage of the frozen transformer.
#[derive(Clone, Debug)]
pub struct TrunkStage {
    /// Forward and backward graph.
    pub graphs: Differentiated,
    /// Name of the forward graph's input.
    pub input: String,
    /// Name of the forward graph's output.
    pub output: String,
    /// The frozen weights that both graphs read, by initializer name.
    pub weights: Vec<String>,
}

/// The frozen vision transformer. `block` names the weights of block 0: for block N, `blocks.0.` becomes `blocks.N.`.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// Patch embedding.
    pub embed: TrunkStage,
    /// Every block but the last; none where there is only one.
    pub block: Option<TrunkStage>,
    /// The last block, the final norm and pooling.
    pub last: TrunkStage,
    /// Number of blocks before the last.
    pub repeats: usize,
}

/// All stages of the model in training.
///
/// ```
/// use brain_adapter::config::Config;
/// use brain_adapter::model::{Mode, adapter::Statistics};
/// use brain_adapter::train::{Activations, GraphOptions, TrainingGraphs};
///
/// let options = GraphOptions {
///     mode: Mode::Tlp,
///     statistics: Statistics::Batch,
///     activations: Activations::Recompute,
///     class_weights: None,
/// };
/// let graphs = TrainingGraphs::new(&Config::default(), &options, &|name| Mode::Tlp.trains(name))?;
/// assert_eq!(graphs.trunk.repeats, 11);
/// # Ok::<(), brain_adapter::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TrainingGraphs {
    /// The adapter's forward and backward graph; none where none of its parameters is trained.
    pub adapter: Option<Differentiated>,
    /// The adapter with its running statistics, for evaluation.
    pub adapter_eval: Graph,
    /// The transformer.
    pub trunk: Trunk,
    /// Heads and loss, with the gradients of trained parameters and, where the adapter is trained, of `vision`.
    pub loss: Graph,
    /// Heads and loss without gradients.
    pub loss_eval: Graph,
}

/// Every parameter of adapter and heads that the graphs of a mode read, trained or not: state-dict key and shape.
pub fn parameters(config: &Config, mode: Mode) -> Vec<keys::Key> {
    keys::adapter(config).into_iter().chain(loss::parameters(config, mode)).collect()
}

impl TrainingGraphs {
    /// The stages of a configuration. `trained` selects the trained parameters by state-dict key: all that the mode
    /// trains ([`Mode::trains`]), or fewer.
    ///
    /// # Errors
    /// `graph.invalid` when an operator has no gradient rule: a defect of this crate.
    pub fn new(config: &Config, options: &GraphOptions, trained: &dyn Fn(&str) -> bool) -> Result<Self> {
        let weights = Weights::placeholders(parameters(config, options.mode));
        let save = saves(options.activations);
        let names: Vec<String> = parameters(config, options.mode).into_iter().map(|(name, _)| name).collect();
        let of = |prefix: bool| {
            names.iter().map(String::as_str).filter(|n| n.starts_with("adapter.") == prefix && trained(n)).collect()
        };
        let (in_adapter, in_heads): (Vec<&str>, Vec<&str>) = (of(true), of(false));
        let adapter = |statistics| {
            let graph = adapter::build_with(config, &weights, statistics)?;
            weights_to_inputs(&graph, &is_weight).map(|(graph, _)| graph)
        };
        let differentiated = (!in_adapter.is_empty()).then(|| {
            let statistics = if config.adapter.norm == Norm::Batch { options.statistics } else { Statistics::Running };
            differentiate(&adapter(statistics)?, &["adapter"], &in_adapter, &save)
        });
        let adapter_eval = adapter(Statistics::Running)?;
        let loss = |class_weights| {
            let graph = loss::build(config, &weights, options.mode, class_weights)?;
            weights_to_inputs(&graph, &is_weight).map(|(graph, _)| graph)
        };
        let loss_eval = loss(options.class_weights.as_deref())?;
        let mut wrt = in_heads;
        wrt.extend((!in_adapter.is_empty()).then_some("vision"));
        Ok(Self {
            adapter: differentiated.transpose()?,
            adapter_eval,
            trunk: Trunk::new(config, &save)?,
            loss: joint(&loss_eval, &["loss"], &wrt)?,
            loss_eval,
        })
    }
}

impl Trunk {
    fn new(config: &Config, save: &dyn Fn(&Node) -> bool) -> Result<Self> {
        let weights = Weights::placeholders(keys::vision(config));
        let graph = vit::build(config, &weights, Attention::Fused, Stages::Output)?;
        let all = graph.segments(Tail::WithLastBlock);
        let blocks: Vec<_> = all.iter().filter(|s| s.name.starts_with("blocks.")).collect();
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Err(Error::internal("vision: the graph has no blocks"));
        };
        let stage = |nodes: std::ops::Range<usize>| TrunkStage::new(&graph, nodes, save);
        Ok(Self {
            embed: stage(0..first.nodes.start)?,
            block: (blocks.len() > 1).then(|| stage(first.nodes.clone())).transpose()?,
            last: stage(last.nodes.clone())?,
            repeats: blocks.len() - 1,
        })
    }
}

impl TrunkStage {
    fn new(whole: &Graph, nodes: std::ops::Range<usize>, save: &dyn Fn(&Node) -> bool) -> Result<Self> {
        let stage = whole.extract(nodes)?;
        let name = |ids: &[crate::graph::ValueId]| match ids {
            [id] => Ok(stage.value(*id).name.clone()),
            _ => Err(Error::internal("vision: expected a stage with one input and one output")),
        };
        let (input, output) = (name(&stage.inputs)?, name(&stage.outputs)?);
        let (graph, weights) = weights_to_inputs(&stage, &is_weight)?;
        let graphs = differentiate(&graph, &[&output], &[&input], save)?;
        Ok(Self { graphs, input, output, weights: weights.into_iter().map(|(name, _)| name).collect() })
    }
}

/// Whether an initializer is a weight, not a constant that the builder added.
pub(super) fn is_weight(name: &str) -> bool {
    !name.starts_with("const.") && !name.ends_with(".ones") && !name.ends_with(".zeros") && name != "class_weights"
}

/// Which nodes' outputs are saved for the backward pass.
fn saves(activations: Activations) -> impl Fn(&Node) -> bool {
    move |node| {
        let expensive = match node.op.kind {
            "MultiHeadAttention" | "Conv" => true,
            // The inner layer is four times as wide as the rest, and a tenth of the work.
            "MatMul" => !node.name.contains(".mlp."),
            "Add" => node.name.starts_with("blocks.") && !node.name.contains(".mlp."),
            _ => false,
        };
        activations == Activations::Save && expensive
    }
}

/// The name of a weight of block 0 in another block. The last stage's names already have its number.
pub(super) fn block_weight(name: &str, block: usize) -> String {
    match name.strip_prefix("blocks.0.") {
        Some(rest) => format!("blocks.{block}.{rest}"),
        None => name.to_owned(),
    }
}
