//! A graph of the bundle as it is run: as a whole, or in groups of blocks.
//!
//! On a GPU the values that pass between groups, and from the adapter to the vision transformer, stay on the device. On
//! a CPU they are copied out: a result that lies in a released session's arena keeps the whole arena, and a copy of it
//! is what memory was planned for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::cache::prepacked::PrepackedCopy;
use super::loader::{GroupModel, LoadSpec, Loader};
use super::memory_plan::{Mode, Planned};
use super::profiles::profiles;
use super::run_report::{StageRun, Timing, milliseconds};
use super::verification::SourceFiles;
use crate::error::{Error, Result};
use crate::model::Part;
use crate::onnx::{Extracted, SegmentedModel};
use crate::runtime::{Input, OutputPlacement, Placement, RuntimeValue, Session, SessionOptions};
use crate::threads;

/// A graph, the plan by which it is run, and the sessions that are loaded for it.
pub(super) struct Stage {
    part: Part,
    loader: Loader,
    planned: Planned,
    /// One a group; a graph that is run as a whole is one group.
    groups: Vec<GroupState>,
    prepacked: bool,
    /// The whole graph's session while another thread loads it.
    preloading: Option<JoinHandle<Result<(Session, Timing)>>>,
    /// A session that another thread releases.
    releasing: Option<JoinHandle<()>>,
    /// Whether a file was opened since this was last asked.
    opened_file: bool,
    first_run: Option<Instant>,
}

/// A group of blocks.
struct GroupState {
    spec: LoadSpec,
    /// Names of the values that pass into and out of the group; none where the graph is run as a whole.
    boundary: Option<Boundary>,
    /// The session, where it stays loaded.
    session: Option<Session>,
    /// Which provider computes which nodes, once the group was loaded and where this is recorded.
    placement: Option<Placement>,
}

struct Boundary {
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Stage {
    /// A stage that runs the graph at `path`, one of `files`, as planned, for reports of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// `onnx.invalid` when the graph cannot be taken apart, or has inputs that no engine can be built for.
    pub fn new(
        part: Part,
        (path, files): (&Path, &SourceFiles),
        model: &SegmentedModel,
        planned: Planned,
        max_tokens: u64,
        loader: Loader,
    ) -> Result<Self> {
        let of = planned.groups.len();
        let mut groups = Vec::with_capacity(of);
        for (i, group) in planned.groups.iter().enumerate() {
            let segments = [group.segments.start, group.segments.end];
            let extracted = if of > 1 { Some(model.extract(group.segments.clone())?) } else { None };
            let profiled = match &extracted {
                _ if !loader.bound => Vec::new(),
                Some(graph) => profiles(model, graph.inputs.iter().map(String::as_str), max_tokens)?,
                None => profiles(model, model.inputs(), max_tokens)?,
            };
            let weights = model.segments()[segments[0]..segments[1]].iter();
            let weights = weights.map(|s| s.weights).fold(0, u64::saturating_add);
            let (model, boundary) = match extracted {
                Some(Extracted { bytes, inputs, outputs }) => {
                    let model = GroupModel { model: Arc::new(bytes), number: i + 1, of };
                    (Some(model), Some(Boundary { inputs, outputs }))
                }
                None => (None, None),
            };
            let (path, files) = (path.to_path_buf(), files.clone());
            let spec = LoadSpec { part, path, files, group: model, segments, weights, profiled };
            groups.push(GroupState { spec, boundary, session: None, placement: None });
        }
        Ok(Self {
            part,
            loader,
            planned,
            groups,
            prepacked: false,
            preloading: None,
            releasing: None,
            opened_file: false,
            first_run: None,
        })
    }

    /// Whether the graph is run as a whole.
    pub fn is_whole(&self) -> bool {
        self.groups.len() == 1
    }

    /// The graph's file.
    pub fn path(&self) -> &Path {
        &self.groups[0].spec.path
    }

    /// Which provider computes which nodes, of all groups that were loaded so far; none where it is not recorded.
    pub fn placement(&self) -> Option<Placement> {
        self.groups.iter().filter_map(|group| group.placement.clone()).reduce(Placement::merge)
    }

    /// When the graph was first run.
    pub fn first_run(&self) -> Option<Instant> {
        self.first_run
    }

    /// How the graph is run, for the result.
    pub fn to_record(&self) -> StageRun {
        StageRun {
            part: self.part.to_string(),
            provider: self.loader.options.provider.name(),
            mode: self.planned.mode,
            groups: self.groups.len(),
            planned_bytes: self.planned.bytes,
            prepacked: self.prepacked,
            placement: self.placement(),
        }
    }

    /// Runs `load`, which reads the graph's files, and makes sure that they were not changed meanwhile.
    ///
    /// # Errors
    /// `bundle.changed`, `bundle.replaced`, and those of `load`.
    pub fn while_loading<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<T> {
        self.groups[0].spec.files.while_loading(load)
    }

    /// Session options for a prepacked copy of the graph.
    pub fn prepacking_options(&self) -> SessionOptions {
        SessionOptions { prepack: true, ..self.loader.options }
    }

    /// Uses a prepacked copy in place of the bundle's graph.
    pub fn use_prepacked(&mut self, copy: &PrepackedCopy) {
        for group in &mut self.groups {
            group.spec.path.clone_from(&copy.graph);
            group.spec.files = SourceFiles::in_cache(copy.files.clone());
        }
        self.planned.groups.iter_mut().for_each(|group| group.prepack = true);
        // It was optimized when it was made: optimizing twice could round differently.
        self.loader.options.optimize = false;
        self.prepacked = true;
    }

    /// Whether a prepacked copy is used.
    pub fn is_prepacked(&self) -> bool {
        self.prepacked
    }

    /// Whether a file of the bundle was opened since this was last asked: it may be another bundle's by now.
    pub fn take_opened_file(&mut self) -> bool {
        std::mem::take(&mut self.opened_file) && !self.prepacked
    }

    /// Starts to load the graph on another thread, if it is run as a whole.
    ///
    /// # Errors
    /// `threads.unavailable`.
    pub fn preload(&mut self) -> Result<()> {
        if !self.is_whole() || self.preloading.is_some() || self.groups[0].session.is_some() {
            return Ok(());
        }
        let (loader, spec, options) = (self.loader.clone(), self.groups[0].spec.clone(), self.session_options(0));
        self.preloading = Some(threads::spawn("load", move || loader.load(&spec, &options, true))?);
        Ok(())
    }

    /// Where a value stays that another graph reads: on the device, where there is one.
    pub fn handover(&self) -> OutputPlacement {
        if self.loader.bound { OutputPlacement::Device } else { OutputPlacement::Host }
    }

    /// Runs the graph and gives the outputs in the order of `outputs`, each where it was asked to stay.
    ///
    /// # Errors
    /// `runtime.*`, `device.*`.
    pub fn run(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
        timing: &mut Timing,
    ) -> Result<Vec<RuntimeValue>> {
        if self.is_whole() {
            return self.run_group(0, inputs, outputs, timing);
        }
        let mut values: BTreeMap<String, RuntimeValue> = BTreeMap::new();
        let asked = |name: &str| outputs.iter().find(|(n, _)| *n == name).map(|(_, placement)| *placement);
        for i in 0..self.groups.len() {
            let (needed, made) = self.boundary(i)?;
            let later = self.needed_after(i);
            let earlier = values.iter().filter_map(|(name, value)| Some((name.as_str(), value.input()?)));
            let given = inputs.iter().copied().chain(earlier);
            let feed: Vec<(&str, Input<'_>)> = given.filter(|(name, _)| needed.iter().any(|n| n == name)).collect();
            let wanted: Vec<_> = made
                .iter()
                .filter(|name| later.contains(*name) || asked(name).is_some())
                .map(|name| (name.as_str(), asked(name).unwrap_or(self.handover())))
                .collect();
            let results = self.run_group(i, &feed, &wanted, timing)?;
            let named: Vec<_> = wanted.iter().map(|(name, _)| (*name).to_owned()).zip(results).collect();
            values.extend(named);
            values.retain(|name, _| later.contains(name) || asked(name).is_some());
        }
        let missing = |name: &str| Error::internal(format!("{}: output `{name}` is missing", self.part));
        outputs.iter().map(|(name, _)| values.remove(*name).ok_or_else(|| missing(name))).collect()
    }

    /// Names of a group's inputs and outputs.
    fn boundary(&self, group: usize) -> Result<(Vec<String>, Vec<String>)> {
        let boundary = self.groups[group].boundary.as_ref();
        let boundary = boundary.ok_or_else(|| Error::internal(format!("{}: a group has no boundary", self.part)))?;
        Ok((boundary.inputs.clone(), boundary.outputs.clone()))
    }

    /// Names of the values that groups behind this one read.
    fn needed_after(&self, group: usize) -> BTreeSet<String> {
        self.groups[group + 1..].iter().filter_map(|g| g.boundary.as_ref()).flat_map(|b| b.inputs.clone()).collect()
    }

    /// Loads a group where it is not loaded, runs it, and keeps or releases its session.
    fn run_group(
        &mut self,
        group: usize,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
        timing: &mut Timing,
    ) -> Result<Vec<RuntimeValue>> {
        let mut session = self.session(group, timing)?;
        // A mapped file that was truncated must not be read.
        self.groups[group].spec.files.check()?;
        let started = Instant::now();
        self.first_run.get_or_insert(started);
        let results = session.run_bound(inputs, outputs);
        // Weights are read from mapped files while the graph runs; a change is a clearer reason than how it failed.
        self.groups[group].spec.files.check()?;
        let results = results?;
        timing.add(self.part.as_str(), milliseconds(started));
        self.keep_or_release(group, session, timing);
        Ok(results)
    }

    fn session_options(&self, group: usize) -> SessionOptions {
        SessionOptions { prepack: self.planned.groups[group].prepack, ..self.loader.options }
    }

    /// The group's session, kept from before or loaded now.
    fn session(&mut self, group: usize, timing: &mut Timing) -> Result<Session> {
        if let Some(session) = self.groups[group].session.take() {
            return Ok(session);
        }
        let started = Instant::now();
        // A warm-up of a group that is run once and released would double its work.
        let stays = self.is_whole() || self.planned.mode == Mode::Resident;
        let session = match self.preloading.take() {
            Some(thread) => {
                let panicked = |_| Err(Error::internal(format!("{}: the loading thread panicked", self.part)));
                let (session, steps) = thread.join().unwrap_or_else(panicked)?;
                // Of loading in the background, only the time waited for counts.
                timing.add("load", milliseconds(started));
                steps.iter().filter(|(name, _)| *name != "load").for_each(|(name, ms)| timing.add(name, ms));
                session
            }
            None => {
                let options = self.session_options(group);
                let (session, steps) = self.loader.load(&self.groups[group].spec, &options, stays)?;
                timing.merge(&steps);
                session
            }
        };
        self.opened_file = true;
        self.groups[group].placement = session.placement().cloned();
        Ok(session)
    }

    /// Keeps a session for the next run, or releases it: unmapping gigabytes takes its time.
    fn keep_or_release(&mut self, group: usize, session: Session, timing: &mut Timing) {
        if self.planned.mode == Mode::Resident {
            self.groups[group].session = Some(session);
            return;
        }
        let started = Instant::now();
        // On a GPU memory must be released before more is taken, whoever else uses the GPU.
        if self.loader.background_release && !self.loader.options.provider.on_gpu() {
            // Where no thread is to be had, the session is released here.
            self.releasing = threads::spawn("release", move || drop(session)).ok();
        } else {
            drop(session);
        }
        timing.add("release", milliseconds(started));
    }
}

impl Drop for Stage {
    /// ONNX Runtime must not be working on another thread when the process ends, nor may a session be left: CUDA's
    /// libraries would be unloaded before what uses them.
    fn drop(&mut self) {
        let _ = self.preloading.take().map(JoinHandle::join);
        let _ = self.releasing.take().map(JoinHandle::join);
        self.groups.clear();
    }
}
