//! Runs a float32 graph on calibration inputs, in bounded memory, and tells what flows through its linear layers.
//!
//! Layer 5, feature `runtime`. [`walk`] cuts the graph into its blocks and runs one at a time over all inputs: in memory
//! are one run of a block (its weights are mapped), the values between blocks for every input, and some tokens of what its
//! layers read and make. So what a walk needs does not grow with the number of blocks. For every block a visitor sees
//! each linear layer's inputs and results on those tokens, and statistics over all of them.
//!
//! Inputs are of two kinds. Those that *calibrate* give statistics; those that are *held out* show how well what was
//! made of the statistics does on inputs that it has not seen.

mod inputs;
mod sample;
mod statistics;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use ndarray::ArrayD;

pub use inputs::Inputs;
pub use sample::{Fidelity, Rows, Sample, fidelity, fidelity_of};
pub use statistics::{ChannelStats, Statistics, ZERO_POINTS};

use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Rewrite, Segment, Tail, ValueId};
use crate::onnx::{self, DataLayout};
use crate::passes::{Linear, linears};
use crate::progress::Progress;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::{DType, Tensor};

/// The tensors of one input by name. They are shared, not copied, by those who look at them.
pub type Feed = BTreeMap<String, Arc<Tensor>>;

/// The least and the largest element of values, by name.
pub type Ranges = BTreeMap<String, (f32, f32)>;

/// What an input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It gives statistics.
    Calibrate,
    /// It is held out, to judge by.
    HeldOut,
    /// Both, where there is only one.
    Both,
}

impl Role {
    /// The roles of `count` inputs: the first of each pair calibrates, the second is held out.
    pub fn of(count: usize) -> Vec<Self> {
        match count {
            1 => vec![Self::Both],
            n => (0..n).map(|i| if i % 2 == 0 { Self::Calibrate } else { Self::HeldOut }).collect(),
        }
    }

    /// Whether it gives statistics.
    pub fn calibrates(self) -> bool {
        self != Self::HeldOut
    }

    /// Whether it is judged by.
    pub fn judges(self) -> bool {
        self != Self::Calibrate
    }
}

/// How a graph is run, and where what it needs on disk goes.
#[derive(Clone, Copy)]
pub struct Runner<'a> {
    /// The runtime.
    pub runtime: &'a Runtime,
    /// Threads within an operator; by default one a core.
    pub threads: Option<usize>,
    /// A folder for temporary files: a block's weights.
    pub scratch: &'a Path,
    /// Where the weights lie in the scratch folder already, when the graph that is run was written there as a whole.
    pub placed: Option<&'a DataLayout>,
}

impl Runner<'_> {
    /// Writes a graph to the scratch folder and loads it, for a few runs: weights stay in their mapped file, except where
    /// that would be more than ten times slower. The files are gone when the session is.
    ///
    /// # Errors
    /// `io`, `disk.full`, `runtime.model`, and what reading the weights gives.
    pub fn open(&self, graph: &Graph) -> Result<Loaded> {
        let halves = |id: ValueId| graph.value(id).init.as_ref().is_some_and(|t| t.dtype() == DType::F16);
        // For a few runs a block of half-precision weights need not lie in memory in float32 as a whole.
        let fold = !graph.initializers().into_iter().any(halves);
        self.load(graph, graph.nodes.iter().any(|n| n.op.kind == "MatMulNBits"), fold)
    }

    /// As [`Self::open`], as a graph is loaded for many runs.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_prepacked(&self, graph: &Graph) -> Result<Loaded> {
        self.load(graph, true, true)
    }

    fn load(&self, graph: &Graph, prepack: bool, fold: bool) -> Result<Loaded> {
        let folder = tempfile::Builder::new().prefix("ba-run-").tempdir_in(self.scratch);
        let folder = folder.map_err(|e| Error::io(self.scratch, "cannot make a temporary folder", e))?;
        let path = match self.placed {
            // External data must lie beside the graph.
            Some(placed) => {
                let stem = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                onnx::write_part_of(graph, self.scratch, &stem, placed)?;
                self.scratch.join(format!("{stem}.onnx"))
            }
            None => {
                onnx::write_scratch(graph, folder.path(), "graph")?;
                folder.path().join("graph.onnx")
            }
        };
        let options = SessionOptions { threads: self.threads, prepack, fold, ..SessionOptions::default() };
        let session = Session::open(self.runtime, &path, &options);
        if self.placed.is_some() {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the temporary file", e))?;
        }
        let session = session?;
        Ok(Loaded { session, _folder: folder })
    }
}

/// A loaded graph with its temporary files.
pub struct Loaded {
    session: Session,
    _folder: tempfile::TempDir,
}

impl Loaded {
    /// Runs the graph on those tensors of `feed` that it takes; gives the outputs of these names, in that order.
    ///
    /// # Errors
    /// `runtime.run`.
    pub fn run(&mut self, feed: &Feed, outputs: &[&str]) -> Result<Vec<Tensor>> {
        let names = self.session.inputs();
        let inputs: Vec<(&str, &Tensor)> =
            names.iter().filter_map(|name| Some((name.as_str(), feed.get(name)?.as_ref()))).collect();
        self.session.run(&inputs, outputs)
    }
}

/// The linear layers that read one activation.
pub struct Group {
    /// The activation, in the whole graph.
    pub input: ValueId,
    /// The layers, in the order of the graph.
    pub linears: Vec<Linear>,
    /// Statistics over all tokens of the inputs that calibrate.
    pub columns: ChannelStats,
    /// Some tokens of the inputs that calibrate.
    pub calibrating: Sample,
    /// Some tokens of the inputs that are held out.
    pub held_out: Sample,
}

/// What a visitor sees of one block.
pub struct Visit<'a> {
    /// The whole graph.
    pub graph: &'a Graph,
    /// The block.
    pub segment: &'a Segment,
    /// The block as a graph of its own.
    pub block: &'a Graph,
    /// Its linear layers.
    pub groups: Vec<Group>,
    /// The values that flow into the block for each held-out input, and those that flow out of it.
    pub held_out: Vec<(Feed, Feed)>,
    /// Least and largest of each of the block's float values, over all inputs, where it was wanted.
    pub ranges: Ranges,
}

/// What to look at.
pub struct Wanted<'a> {
    /// Whether to find the least and the largest element of every value.
    pub ranges: bool,
    /// Which blocks are visited; the others are only run. Nothing is run behind the last one that is visited, when one is
    /// not.
    pub blocks: &'a dyn Fn(&Segment) -> bool,
}

/// Runs `graph` block by block over the inputs and shows each block to `visit`; gives the graph's outputs for each input, or
/// nothing where it did not run to its end. Blocks that are not visited are left out where what they gave was kept.
///
/// # Errors
/// Those of writing and running a block, and of `visit`.
pub fn walk(
    graph: &Graph,
    inputs: &mut Inputs,
    wanted: &Wanted<'_>,
    runner: &Runner<'_>,
    progress: &mut dyn Progress,
    visit: &mut dyn FnMut(Visit<'_>, &mut dyn Progress) -> Result<()>,
) -> Result<Option<Vec<Feed>>> {
    let segments = graph.segments(Tail::Separate);
    let blocks = segments.iter().map(|s| graph.extract(s.nodes.clone())).collect::<Result<Vec<_>>>()?;
    let ends: Vec<&str> = graph.outputs.iter().map(|&id| graph.value(id).name.as_str()).collect();
    let all = segments.iter().all(wanted.blocks);
    let last = segments.iter().rposition(wanted.blocks).filter(|_| !all).unwrap_or(segments.len() - 1);
    let roles = inputs.roles().to_vec();
    let (_, first) = inputs.before(0);
    let (mut feeds, mut begin) = (first.to_vec(), 0);
    for (i, (segment, block)) in segments.iter().zip(&blocks).enumerate().take(last + 1) {
        if let Some(next) = (i..=last).find(|&next| (wanted.blocks)(&segments[next])) {
            let (known, entering) = inputs.before(next);
            if known > i.max(begin) {
                (feeds, begin) = (entering.to_vec(), known);
            }
        }
        if i < begin {
            continue;
        }
        inputs.keep(i, &feeds);
        progress.item(&format!("{}: {}", graph.name, segment.name), i, last + 1);
        let visited = (wanted.blocks)(segment);
        let groups = if visited { groups(graph, segment) } else { Vec::new() };
        let mut seen = Observer::new(graph, block, &groups, &roles, wanted.ranges && visited)?;
        let mut loaded = runner.open(&seen.graph)?;
        let later: BTreeSet<&str> = blocks[i + 1..]
            .iter()
            .flat_map(|b| b.inputs.iter().map(|&id| b.value(id).name.as_str()))
            .chain(ends.iter().copied())
            .collect();
        let mut held_out = Vec::new();
        for (feed, role) in feeds.iter_mut().zip(&roles) {
            let made = seen.run(&mut loaded, feed, *role)?;
            if visited && role.judges() {
                let inputs = block.inputs.iter().filter_map(|&id| feed.get_key_value(&block.value(id).name));
                held_out.push((inputs.map(|(n, t)| (n.clone(), Arc::clone(t))).collect(), made.clone()));
            }
            feed.extend(made);
            feed.retain(|name, _| later.contains(name.as_str()));
        }
        drop(loaded);
        if visited {
            let (groups, ranges) = seen.finish(groups);
            visit(Visit { graph, segment, block, groups, held_out, ranges }, progress)?;
        }
    }
    Ok((last + 1 == segments.len()).then_some(feeds))
}

/// The segment's linear layers by the activation that they read.
fn groups(graph: &Graph, segment: &Segment) -> Vec<(ValueId, Vec<Linear>)> {
    let mut groups: Vec<(ValueId, Vec<Linear>)> = Vec::new();
    for linear in linears(graph, segment.nodes.clone()) {
        match groups.iter_mut().find(|(input, _)| *input == linear.input) {
            Some((_, group)) => group.push(linear),
            None => groups.push((linear.input, vec![linear])),
        }
    }
    groups
}

/// The block with more outputs, and what was seen in them.
struct Observer {
    graph: Graph,
    /// Names of the block's own outputs.
    outputs: Vec<String>,
    /// Names of what is looked at, in the order of the groups: an activation, then its layers' results.
    taps: Vec<String>,
    /// Names of the outputs that are ranges, and of the values that they are of.
    ranges: Vec<([String; 2], String)>,
    columns: Vec<ChannelStats>,
    samples: Vec<[Sample; 2]>,
    /// How many inputs calibrate, and how many are held out.
    inputs: [usize; 2],
    seen: Ranges,
}

impl Observer {
    fn new(
        whole: &Graph,
        block: &Graph,
        groups: &[(ValueId, Vec<Linear>)],
        roles: &[Role],
        find_ranges: bool,
    ) -> Result<Self> {
        let name = |id: ValueId| whole.value(id).name.clone();
        let taps: Vec<String> = groups
            .iter()
            .flat_map(|(input, linears)| std::iter::once(name(*input)).chain(linears.iter().map(|l| name(l.output))))
            .collect();
        let mut rewrite = Rewrite::new(block);
        block.nodes.iter().try_for_each(|node| rewrite.copy(node))?;
        let mut outputs = block.outputs.clone();
        let made = block.nodes.iter().flat_map(|n| &n.outputs).copied();
        for id in made.clone().filter(|id| taps.contains(&block.value(*id).name)) {
            if !outputs.contains(&id) {
                outputs.push(id);
            }
        }
        let mut ranges = Vec::new();
        for id in made.filter(|_| find_ranges) {
            let (value, ty) = (block.value(id).name.clone(), &block.value(id).ty);
            if ty.dtype != DType::F32 || ty.shape.is_empty() {
                continue;
            }
            let axes: Vec<i64> = (0..ty.shape.len() as i64).collect();
            let new = rewrite.value(id)?;
            let names = [format!("least of {value}"), format!("largest of {value}")];
            for (kind, name) in ["ReduceMin", "ReduceMax"].into_iter().zip(&names) {
                let end = rewrite.builder.reduce(kind, new, &axes)?;
                rewrite.builder.output(name, end)?;
            }
            ranges.push((names, value));
        }
        let graph = rewrite.finish_with(&outputs)?;
        let columns = groups.iter().map(|(_, l)| ChannelStats::new(l[0].k)).collect();
        let sample = |(_, l): &(ValueId, Vec<Linear>)| std::array::from_fn(|_| Sample::new(l[0].k, l));
        Ok(Self {
            graph,
            outputs: block.outputs.iter().map(|&id| block.value(id).name.clone()).collect(),
            taps,
            ranges,
            columns,
            samples: groups.iter().map(sample).collect(),
            inputs: [Role::calibrates, Role::judges].map(|has| roles.iter().filter(|r| has(**r)).count()),
            seen: Ranges::new(),
        })
    }

    /// Runs one input; gives what flows out of the block.
    fn run(&mut self, loaded: &mut Loaded, feed: &Feed, role: Role) -> Result<Feed> {
        let tapped = self.taps.iter().filter(|t| !feed.contains_key(*t) && !self.outputs.contains(t));
        let ranges = self.ranges.iter().flat_map(|(ends, _)| ends);
        let names: Vec<&str> = self.outputs.iter().chain(tapped).chain(ranges).map(String::as_str).collect();
        let results = loaded.run(feed, &names)?;
        let mut made: Feed = names.iter().map(|n| (*n).to_owned()).zip(results.into_iter().map(Arc::new)).collect();
        for (ends, value) in &self.ranges {
            let end = |name: &String| made.get(name).and_then(|t| t.as_f32()?.first().copied()).unwrap_or(f32::NAN);
            let [low, high] = [&ends[0], &ends[1]].map(end);
            let known = self.seen.entry(value.clone()).or_insert((0.0, 0.0));
            // A NaN must not be lost in a maximum.
            let whole = low.is_nan() || high.is_nan();
            *known = if whole { (f32::MIN, f32::MAX) } else { (known.0.min(low), known.1.max(high)) };
        }
        let mut taps = self.taps.iter();
        for (columns, samples) in self.columns.iter_mut().zip(&mut self.samples) {
            let take = |_| rows(taps.next().and_then(|t| made.get(t).or_else(|| feed.get(t))).map(Arc::as_ref));
            let tensors = (0..=samples[0].y.len()).map(take).collect::<Result<Vec<_>>>()?;
            if role.calibrates() {
                columns.add(tensors[0]);
                samples[0].add(&tensors, self.inputs[0]);
            }
            if role.judges() {
                samples[1].add(&tensors, self.inputs[1]);
            }
        }
        made.retain(|name, _| self.outputs.contains(name));
        Ok(made)
    }

    fn finish(self, groups: Vec<(ValueId, Vec<Linear>)>) -> (Vec<Group>, Ranges) {
        let parts = groups.into_iter().zip(self.columns).zip(self.samples);
        let groups = parts.map(|(((input, linears), columns), [calibrating, held_out])| Group {
            input,
            linears,
            columns,
            calibrating,
            held_out,
        });
        (groups.collect(), self.seen)
    }
}

/// The tensor's values.
fn rows(tensor: Option<&Tensor>) -> Result<&ArrayD<f32>> {
    match tensor {
        Some(Tensor::F32(values)) => Ok(values),
        _ => Err(Error::new(Code::RUNTIME_RUN, "a linear layer's activation is no float32 tensor")),
    }
}
