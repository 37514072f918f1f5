//! The model as the trainer runs it: stages, there and back.
//!
//! ```text
//! volume [batch, D, H, W] ─ adapter ─ image ─┬ for each scan ─ embed ─ block × (layers − 1) ─ last ─┬─ vision ┐
//!                                            └──────────────────────────────────────────────────────┘         ├ loss
//! text [batch, hidden], labels [batch] ───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Each stage is a graph of its own whose weights are inputs, so all blocks are run by one pair of sessions, frozen weights lie
//! in a mapped file once, and a stage's activations are gone when it is done. Only what a stage is given is kept for the way
//! back, with [`Activations::Save`] also what is dear to compute again. The transformer sees one scan at a time: a batch matters to
//! the adapter (batch norm) and the loss (the contrastive term) alone. Graphs are made from the configuration; weights come
//! by name when they are run.

use crate::config::{Config, Norm};
use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Node, Tail};
use crate::model::adapter::{self, Statistics};
use crate::model::{Attention, Mode, Stages, Weights, keys, loss, vit};
use crate::passes::autodiff::{Differentiated, differentiate, joint};
use crate::passes::weights_to_inputs;

/// What is kept of a stage until its way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Its input; everything else is computed again.
    #[default]
    Recompute,
    /// Also queries, keys, values and the result of attention, the sum behind it, and results of convolutions: faster, with more
    /// memory.
    Save,
}

/// What decides the graphs.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is trained.
    pub mode: Mode,
    /// What batch norms normalise by.
    pub statistics: Statistics,
    /// What is kept for the way back.
    pub activations: Activations,
    /// Weights of the classes in the loss.
    pub class_weights: Option<Vec<f32>>,
}

/// One stage of the frozen transformer.
#[derive(Clone, Debug)]
pub struct Part {
    /// There and back.
    pub graphs: Differentiated,
    /// The name of its input.
    pub input: String,
    /// The name of its result.
    pub output: String,
    /// The frozen weights that it takes, by initializer name.
    pub weights: Vec<String>,
}

/// The frozen transformer. Weights of `block` are those of block 0: for block N, `blocks.0.` becomes `blocks.N.`.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// Patch embedding.
    pub embed: Part,
    /// Every block but the last; none where there is only one.
    pub block: Option<Part>,
    /// The last block, the final norm and pooling.
    pub last: Part,
    /// Number of blocks before the last.
    pub repeats: usize,
}

/// All stages.
#[derive(Clone, Debug)]
pub struct Graphs {
    /// The adapter there and back; none where nothing of it is trained.
    pub adapter: Option<Differentiated>,
    /// The adapter with its running statistics, for evaluation.
    pub adapter_eval: Graph,
    /// The transformer.
    pub trunk: Trunk,
    /// The heads' loss with the gradients of trained parameters and, where the adapter is trained, of `vision`.
    pub loss: Graph,
    /// The heads' loss without gradients.
    pub loss_eval: Graph,
}

/// Every parameter of the adapter and heads that a mode's graphs read, with its shape.
pub fn parameters(config: &Config, mode: Mode) -> Vec<keys::Key> {
    keys::adapter(config).into_iter().chain(loss::parameters(config, mode)).collect()
}

impl Graphs {
    /// The stages of a configuration. `trained` says which parameters are trained: all of the mode's, or fewer.
    ///
    /// # Errors
    /// `graph.invalid` when an operator has no gradient rule: a defect of this crate.
    pub fn new(config: &Config, options: &Options, trained: &dyn Fn(&str) -> bool) -> Result<Self> {
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
        let back = (!in_adapter.is_empty()).then(|| {
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
            adapter: back.transpose()?,
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
            return Err(Error::new(Code::GRAPH_INVALID, "the vision transformer has no blocks"));
        };
        let part = |nodes: std::ops::Range<usize>| Part::new(&graph, nodes, save);
        Ok(Self {
            embed: part(0..first.nodes.start)?,
            block: (blocks.len() > 1).then(|| part(first.nodes.clone())).transpose()?,
            last: part(last.nodes.clone())?,
            repeats: blocks.len() - 1,
        })
    }
}

impl Part {
    fn new(whole: &Graph, nodes: std::ops::Range<usize>, save: &dyn Fn(&Node) -> bool) -> Result<Self> {
        let part = whole.extract(nodes)?;
        let name = |ids: &[crate::graph::ValueId]| match ids {
            [id] => Ok(part.value(*id).name.clone()),
            _ => Err(Error::new(Code::GRAPH_INVALID, "a stage has more than one input or result")),
        };
        let (input, output) = (name(&part.inputs)?, name(&part.outputs)?);
        let (graph, freed) = weights_to_inputs(&part, &is_weight)?;
        let graphs = differentiate(&graph, &[&output], &[&input], save)?;
        Ok(Self { graphs, input, output, weights: freed.into_iter().map(|(name, _)| name).collect() })
    }
}

/// Whether an initializer is a weight and not a constant that the builder made.
pub(super) fn is_weight(name: &str) -> bool {
    !name.starts_with("const.") && !name.ends_with(".ones") && !name.ends_with(".zeros") && name != "class_weights"
}

/// Which nodes' results are kept.
fn saves(activations: Activations) -> impl Fn(&Node) -> bool {
    move |node| {
        let dear = match node.op.kind {
            "MultiHeadAttention" | "Conv" => true,
            // The inner layer is four times as wide as the rest, and a tenth of the work.
            "MatMul" => !node.name.contains(".mlp."),
            "Add" => node.name.starts_with("blocks.") && !node.name.contains(".mlp."),
            _ => false,
        };
        activations == Activations::Save && dear
    }
}

/// The name of a weight of block 0 as that of another block. The last stage's names are its own already.
pub(super) fn numbered(name: &str, block: usize) -> String {
    match name.strip_prefix("blocks.0.") {
        Some(rest) => format!("blocks.{block}.{rest}"),
        None => name.to_owned(),
    }
}
