//! A graph of the bundle as it is run: as a whole, or in groups of blocks.
//!
//! On a GPU what flows between groups, and from the adapter to the vision transformer, stays there. On the processor it is copied
//! out: a result that lies in a released session's arena keeps the whole arena, and a copy of it is what memory was planned for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::loader::{Graph, Setting};
use super::memory_plan::{Mode, Planned};
use super::profiles::profiles;
use super::run_report::{StageRun, Timing, milliseconds};
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::onnx::{Extracted, SegmentedModel};
use crate::runtime::{Input, OutputPlacement, Placement, RuntimeValue, Session, SessionOptions};
use crate::tensor::{Tensor, TensorView};

/// A graph with the plan by which it is run.
pub(crate) struct Stage {
    name: Part,
    setting: Setting,
    planned: Planned,
    /// What is loaded for each group; one for the whole.
    graphs: Vec<Graph>,
    /// What flows into and out of each group; none where the graph is run as a whole.
    flows: Vec<(Vec<String>, Vec<String>)>,
    /// Sessions that stay loaded, a group each.
    sessions: Vec<Option<Session>>,
    prepacked: bool,
    /// The whole graph's session while another thread loads it.
    ahead: Option<JoinHandle<Result<(Session, Timing)>>>,
    /// A session that another thread lets go.
    leaving: Option<JoinHandle<()>>,
    /// Whether a file was opened since this was last asked.
    opened: bool,
    /// Where nodes are computed: of each group that was loaded.
    placements: Vec<Option<Placement>>,
}

impl Stage {
    /// A stage that runs the graph at `path` as planned, for reports of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// `onnx.invalid` when the graph cannot be taken apart, or has inputs that no engine can be made for.
    pub fn new(
        name: Part,
        path: PathBuf,
        model: &SegmentedModel,
        planned: Planned,
        max_tokens: u64,
        setting: Setting,
    ) -> Result<Self> {
        let of = planned.groups.len();
        let (mut graphs, mut flows) = (Vec::new(), Vec::new());
        for (i, group) in planned.groups.iter().enumerate() {
            let segments = [group.segments.start, group.segments.end];
            let part = if of > 1 { Some(model.extract(group.segments.clone())?) } else { None };
            let profiled = match &part {
                _ if !setting.bound => Vec::new(),
                Some(part) => profiles(model, part.inputs.iter().map(String::as_str), max_tokens)?,
                None => profiles(model, model.inputs(), max_tokens)?,
            };
            let group = part.map(|Extracted { bytes, inputs, outputs }| {
                flows.push((inputs, outputs));
                (Arc::new(bytes), i + 1, of)
            });
            let weights = &model.segments()[segments[0]..segments[1]];
            let weights = weights.iter().map(|s| s.weights).fold(0, u64::saturating_add);
            graphs.push(Graph { name, path: path.clone(), group, segments, weights, profiled });
        }
        let sessions = graphs.iter().map(|_| None).collect();
        let placements = vec![None; of];
        Ok(Self {
            name,
            setting,
            planned,
            graphs,
            flows,
            sessions,
            prepacked: false,
            ahead: None,
            leaving: None,
            opened: false,
            placements,
        })
    }

    /// Whether the graph is run as a whole.
    pub fn whole(&self) -> bool {
        self.flows.is_empty()
    }

    /// The graph's file.
    pub fn path(&self) -> &Path {
        &self.graphs[0].path
    }

    /// Which provider computes which nodes, of what was loaded so far; none where it was not asked for.
    pub fn placement(&self) -> Option<Placement> {
        self.placements.iter().flatten().cloned().reduce(Placement::merge)
    }

    /// How it is run, for a prediction.
    pub fn told(&self) -> StageRun {
        StageRun {
            part: self.name.to_string(),
            provider: self.setting.options.provider.name(),
            mode: self.planned.mode,
            groups: self.planned.groups.len(),
            prepacked: self.prepacked,
            placement: self.placement(),
        }
    }

    /// How its sessions are opened.
    pub fn options(&self) -> SessionOptions {
        SessionOptions { prepack: true, ..self.setting.options }
    }

    /// Takes a copy with weights laid out in place of the bundle's graph.
    pub fn take_prepacked(&mut self, path: PathBuf) {
        self.graphs.iter_mut().for_each(|graph| graph.path.clone_from(&path));
        self.planned.groups.iter_mut().for_each(|group| group.prepack = true);
        // It was rewritten when it was made: once more, it could round otherwise.
        self.setting.options.optimize = false;
        self.prepacked = true;
    }

    /// Whether weights come laid out from the cache.
    pub fn is_prepacked(&self) -> bool {
        self.prepacked
    }

    /// Whether a file of the bundle was opened since this was last asked: it may be another bundle's by now.
    pub fn take_opened(&mut self) -> bool {
        std::mem::take(&mut self.opened) && !self.prepacked
    }

    /// Begins to load the graph on another thread, if it is run as a whole.
    pub fn load_ahead(&mut self) {
        if !self.whole() || self.ahead.is_some() || self.sessions[0].is_some() {
            return;
        }
        let options = SessionOptions { prepack: self.planned.groups[0].prepack, ..self.setting.options };
        let (setting, graph) = (self.setting.clone(), self.graphs[0].clone());
        self.ahead = Some(std::thread::spawn(move || setting.load(&graph, &options, true)));
    }

    /// What another graph may be given as it is: left on the device, where there is one.
    pub fn leave(&self) -> OutputPlacement {
        if self.setting.bound { OutputPlacement::Device } else { OutputPlacement::Host }
    }

    /// Runs the graph on tensors and gives the outputs of those names, in that order. `began` is called when all that comes before
    /// the first run is done.
    ///
    /// # Errors
    /// `runtime.*`, `device.*`.
    pub fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        outputs: &[&str],
        timing: &mut Timing,
        began: &mut dyn FnMut(),
    ) -> Result<Vec<Tensor>> {
        let inputs = inputs.iter().map(|(name, tensor)| Ok((*name, self.borrowed(name, tensor)?)));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs: Vec<_> = outputs.iter().map(|name| (*name, OutputPlacement::Host)).collect();
        let results = self.flow(&inputs, &outputs, timing, began)?;
        Ok(results.into_iter().filter_map(RuntimeValue::host).collect())
    }

    fn borrowed<'a>(&self, name: &str, tensor: &'a Tensor) -> Result<Input<'a>> {
        let message = || format!("input `{name}` is not in row-major order");
        let view = TensorView::of(tensor).map(Input::Host);
        view.ok_or_else(|| Error::new(Code::RUNTIME_RUN, message()).at(self.path()))
    }

    /// As [`Self::run`], with inputs from other graphs, and results left where the caller wants them.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn flow(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
        timing: &mut Timing,
        began: &mut dyn FnMut(),
    ) -> Result<Vec<RuntimeValue>> {
        if self.whole() {
            let mut session = self.session(0, timing)?;
            began();
            let started = Instant::now();
            let results = session.run_bound(inputs, outputs)?;
            timing.add(self.name.as_str(), milliseconds(started));
            self.keep(0, session, timing);
            return Ok(results);
        }
        let mut flowing: BTreeMap<String, RuntimeValue> = BTreeMap::new();
        for i in 0..self.graphs.len() {
            let mut session = self.session(i, timing)?;
            let (takes, gives) = &self.flows[i];
            let later: BTreeSet<&str> = self.flows[i + 1..].iter().flat_map(|f| &f.0).map(String::as_str).collect();
            let asked = |name: &str| outputs.iter().find(|(n, _)| *n == name).map(|(_, leave)| *leave);
            let inner = flowing.iter().filter_map(|(name, value)| Some((name.as_str(), value.input()?)));
            let given = inputs.iter().copied().chain(inner);
            let feed: Vec<(&str, Input<'_>)> = given.filter(|(name, _)| takes.iter().any(|n| n == name)).collect();
            let wanted = gives.iter().filter(|n| later.contains(n.as_str()) || asked(n).is_some());
            let wanted: Vec<_> = wanted.map(|n| (n.as_str(), asked(n).unwrap_or(self.leave()))).collect();
            began();
            let started = Instant::now();
            let results = session.run_bound(&feed, &wanted)?;
            timing.add(self.name.as_str(), milliseconds(started));
            let made: Vec<_> = wanted.iter().map(|(n, _)| (*n).to_owned()).zip(results).collect();
            flowing.extend(made);
            flowing.retain(|name, _| later.contains(name.as_str()) || asked(name).is_some());
            self.keep(i, session, timing);
        }
        let missing = |name: &str| Error::new(Code::RUNTIME_RUN, format!("output `{name}` is missing")).at(self.path());
        outputs.iter().map(|(name, _)| flowing.remove(*name).ok_or_else(|| missing(name))).collect()
    }

    /// The group's session, as it was kept or loaded now.
    fn session(&mut self, group: usize, timing: &mut Timing) -> Result<Session> {
        if let Some(session) = self.sessions[group].take() {
            return Ok(session);
        }
        let started = Instant::now();
        let options = SessionOptions { prepack: self.planned.groups[group].prepack, ..self.setting.options };
        // A group that is run once and let go would be run twice for nothing.
        let stays = self.whole() || self.planned.mode == Mode::Resident;
        let session = match self.ahead.take() {
            Some(thread) => {
                let panicked = || Error::new(Code::RUNTIME_MODEL, "loading stopped unexpectedly").at(self.path());
                let (session, beside) = thread.join().unwrap_or_else(|_| Err(panicked()))?;
                // Of loading beside other work, what was waited for counts.
                timing.add("load", milliseconds(started));
                beside.iter().filter(|(name, _)| *name != "load").for_each(|(name, ms)| timing.add(name, ms));
                session
            }
            None => {
                let (session, steps) = self.setting.load(&self.graphs[group], &options, stays)?;
                timing.merge(&steps);
                session
            }
        };
        self.opened = true;
        self.placements[group] = session.placement().cloned();
        Ok(session)
    }

    /// Keeps a session for the next run, or lets it go: unmapping gigabytes takes its time.
    fn keep(&mut self, group: usize, session: Session, timing: &mut Timing) {
        if self.planned.mode == Mode::Resident {
            self.sessions[group] = Some(session);
            return;
        }
        let started = Instant::now();
        // On a GPU memory is to be back before more is taken, whoever else uses the card.
        if self.setting.beside && !self.setting.options.provider.on_gpu() {
            self.leaving = Some(std::thread::spawn(move || drop(session)));
        } else {
            drop(session);
        }
        timing.add("release", milliseconds(started));
    }
}

impl Drop for Stage {
    /// ONNX Runtime must not be at work on another thread when the process ends, nor a session be left: CUDA's libraries would
    /// be gone before what uses them.
    fn drop(&mut self) {
        let _ = self.ahead.take().map(JoinHandle::join);
        let _ = self.leaving.take().map(JoinHandle::join);
        self.sessions.clear();
    }
}
