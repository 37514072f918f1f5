//! A graph of the bundle as it is run: as a whole, or in groups of blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;

use super::memory::{Mode, Planned};
use super::prediction::{StageRun, Timing};
use crate::error::{Code, Error, Result};
use crate::onnx::{Extracted, SegmentedModel};
use crate::runtime::{Placement, Runtime, Session, SessionOptions};
use crate::tensor::Tensor;

/// A graph with the plan by which it is run.
pub(super) struct Stage {
    name: &'static str,
    path: PathBuf,
    planned: Planned,
    /// The groups as graphs; none where the graph is run as a whole.
    groups: Vec<Extracted>,
    /// Sessions that stay loaded, a group each.
    sessions: Vec<Option<Session>>,
    options: SessionOptions,
    prepacked: bool,
    /// Whether sessions may be let go on another thread.
    beside: bool,
    /// The whole graph's session while another thread loads it.
    ahead: Option<JoinHandle<Result<Session>>>,
    /// A session that another thread lets go.
    leaving: Option<JoinHandle<()>>,
    /// Whether a file was opened since this was last asked.
    opened: bool,
    /// Where nodes are computed: of each group that was loaded.
    placements: Vec<Option<Placement>>,
}

impl Stage {
    /// A stage that runs the graph at `path` as planned. With `beside`, sessions are let go on another thread.
    ///
    /// # Errors
    /// `onnx.invalid` when the graph cannot be taken apart.
    pub fn new(
        name: &'static str,
        path: PathBuf,
        model: &SegmentedModel,
        planned: Planned,
        options: SessionOptions,
        beside: bool,
    ) -> Result<Self> {
        let groups = match planned.groups.as_slice() {
            [_] => Vec::new(),
            several => several.iter().map(|g| model.extract(g.segments.clone())).collect::<Result<_>>()?,
        };
        let sessions = planned.groups.iter().map(|_| None).collect();
        let placements = vec![None; planned.groups.len()];
        Ok(Self {
            name,
            path,
            planned,
            groups,
            sessions,
            options,
            prepacked: false,
            beside,
            ahead: None,
            leaving: None,
            opened: false,
            placements,
        })
    }

    /// Whether the graph is run as a whole.
    pub fn whole(&self) -> bool {
        self.groups.is_empty()
    }

    /// The graph's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which provider computes which nodes, of what was loaded so far; none where it was not asked for.
    pub fn placement(&self) -> Option<Placement> {
        self.placements.iter().flatten().cloned().reduce(Placement::and)
    }

    /// How it is run, for a prediction.
    pub fn told(&self) -> StageRun {
        StageRun {
            part: self.name.to_owned(),
            mode: self.planned.mode,
            groups: self.planned.groups.len(),
            prepacked: self.prepacked,
            placement: self.placement(),
        }
    }

    /// How its sessions are opened.
    pub fn options(&self) -> SessionOptions {
        SessionOptions { prepack: true, ..self.options }
    }

    /// Takes a copy with weights laid out in place of the bundle's graph.
    pub fn take_prepacked(&mut self, path: PathBuf) {
        self.path = path;
        self.planned.groups.iter_mut().for_each(|group| group.prepack = true);
        // It was rewritten when it was made: once more, it could round otherwise.
        self.options.optimize = false;
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
    pub fn load_ahead(&mut self, runtime: &'static Runtime) {
        if !self.whole() || self.ahead.is_some() || self.sessions[0].is_some() {
            return;
        }
        let options = SessionOptions { prepack: self.planned.groups[0].prepack, ..self.options };
        let path = self.path.clone();
        self.ahead = Some(std::thread::spawn(move || Session::open(runtime, &path, &options)));
    }

    /// Runs the graph and gives the outputs of those names, in that order. `began` is called when all that comes before the
    /// first run is done.
    ///
    /// # Errors
    /// `runtime.*`, `device.unavailable`.
    pub fn run(
        &mut self,
        runtime: &Runtime,
        inputs: &[(&str, &Tensor)],
        outputs: &[&str],
        timing: &mut Timing,
        began: &mut dyn FnMut(),
    ) -> Result<Vec<Tensor>> {
        if self.groups.is_empty() {
            let mut session = self.session(runtime, 0, timing)?;
            began();
            let started = Instant::now();
            let results = session.run(inputs, outputs)?;
            timing.add(self.name, milliseconds(started));
            self.keep(0, session, timing);
            return Ok(results);
        }
        let mut flowing: BTreeMap<String, Tensor> = BTreeMap::new();
        for i in 0..self.groups.len() {
            let mut session = self.session(runtime, i, timing)?;
            let group = &self.groups[i];
            let later: BTreeSet<&str> = self.groups[i + 1..]
                .iter()
                .flat_map(|g| &g.inputs)
                .map(String::as_str)
                .chain(outputs.iter().copied())
                .collect();
            let inner = flowing.iter().map(|(name, tensor)| (name.as_str(), tensor));
            let given = inputs.iter().copied().chain(inner);
            let feed: Vec<(&str, &Tensor)> = given.filter(|(name, _)| group.inputs.iter().any(|n| n == name)).collect();
            let wanted: Vec<&str> = group.outputs.iter().map(String::as_str).filter(|n| later.contains(n)).collect();
            began();
            let started = Instant::now();
            let results = session.run(&feed, &wanted)?;
            timing.add(self.name, milliseconds(started));
            let made: Vec<(String, Tensor)> = wanted.iter().map(|n| (*n).to_owned()).zip(results).collect();
            flowing.extend(made);
            flowing.retain(|name, _| later.contains(name.as_str()));
            self.keep(i, session, timing);
        }
        let missing = |name: &str| Error::new(Code::RUNTIME_RUN, format!("output `{name}` is missing")).at(&self.path);
        outputs.iter().map(|name| flowing.remove(*name).ok_or_else(|| missing(name))).collect()
    }

    /// The group's session, as it was kept or loaded now.
    fn session(&mut self, runtime: &Runtime, group: usize, timing: &mut Timing) -> Result<Session> {
        if let Some(session) = self.sessions[group].take() {
            return Ok(session);
        }
        let started = Instant::now();
        let options = SessionOptions { prepack: self.planned.groups[group].prepack, ..self.options };
        let panicked = || Error::new(Code::RUNTIME_MODEL, "loading stopped unexpectedly").at(&self.path);
        let session = match (self.ahead.take(), self.groups.get(group)) {
            (Some(thread), _) => thread.join().unwrap_or_else(|_| Err(panicked()))?,
            (None, Some(part)) => Session::open_part(runtime, &part.bytes, &self.path, &options)?,
            (None, None) => Session::open(runtime, &self.path, &options)?,
        };
        self.opened = true;
        self.placements[group] = session.placement().cloned();
        timing.add("load", milliseconds(started));
        Ok(session)
    }

    /// Keeps a session for the next run, or lets it go: unmapping gigabytes takes its time.
    fn keep(&mut self, group: usize, session: Session, timing: &mut Timing) {
        if self.planned.mode == Mode::Resident {
            self.sessions[group] = Some(session);
            return;
        }
        let started = Instant::now();
        if self.beside {
            self.leaving = Some(std::thread::spawn(move || drop(session)));
        } else {
            drop(session);
        }
        timing.add("release", milliseconds(started));
    }
}

impl Drop for Stage {
    /// ONNX Runtime must not be at work on another thread when the process ends.
    fn drop(&mut self) {
        let _ = self.ahead.take().map(JoinHandle::join);
        let _ = self.leaving.take().map(JoinHandle::join);
    }
}

/// Milliseconds that have passed.
pub(super) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
