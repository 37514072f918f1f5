//! Loads a graph's sessions: engines first where the provider makes them, then the session, then one run to warm it up.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cache::engines::{EngineKey, Engines, Made};
use super::run_report::Timing;
use super::run_report::milliseconds;
use crate::error::{Error, Result};
use crate::model::Part;
use crate::runtime::{EngineOptions, ProfiledInput, Runtime, Session, SessionOptions, Source};

/// How the graphs of a run are loaded.
#[derive(Clone)]
pub(crate) struct Setting {
    /// ONNX Runtime.
    pub runtime: &'static Runtime,
    /// Who computes, and with how many threads.
    pub options: SessionOptions,
    /// Whether runs go the way of a device: values bound, results left where they are made.
    pub bound: bool,
    /// Whether a session is run once when it is loaded.
    pub warm_up: bool,
    /// Where engines are kept, and what they depend on but for the graph; none where none are made, or kept.
    pub engines: Option<(Engines, EngineKey)>,
    /// Whether sessions may be let go on another thread.
    pub beside: bool,
}

/// What a session is loaded from.
#[derive(Clone)]
pub(crate) struct Graph {
    /// Its name, for messages.
    pub name: Part,
    /// The whole graph's file.
    pub path: PathBuf,
    /// A group of it as a graph, which it is of how many, and its segments; none for the whole.
    pub group: Option<(std::sync::Arc<Vec<u8>>, usize, usize)>,
    /// Its segments.
    pub segments: [usize; 2],
    /// Bytes of their weights.
    pub weights: u64,
    /// The extents of its inputs.
    pub profiled: Vec<ProfiledInput>,
}

impl Setting {
    /// Loads it, and warms it up where it is wanted and `stays`; tells the milliseconds of each step.
    ///
    /// # Errors
    /// `device.unavailable`, `device.memory`, `runtime.*`; `io` and `disk.full` where engines are kept.
    pub fn load(&self, graph: &Graph, options: &SessionOptions, stays: bool) -> Result<(Session, Timing)> {
        let mut timing = Timing::default();
        let mut engines = EngineOptions { inputs: graph.profiled.clone(), ..EngineOptions::default() };
        if let Some((kept, key)) = &self.engines {
            let started = Instant::now();
            let key = key.of(graph);
            let made = Made { what: &graph.what(), weights: graph.weights, context: options.provider.context() };
            engines.folder = kept.folder(&key, &made, &mut |folder| {
                let engines = EngineOptions { folder: Some(folder.to_path_buf()), make: true, ..engines.clone() };
                // Made when the graph is loaded or first run; on the disk when the session is gone.
                self.open(graph, options, &engines)?.warm_up(&graph.profiled)
            })?;
            timing.add("engines", milliseconds(started));
        }
        let started = Instant::now();
        let mut session = self.open(graph, options, &engines).map_err(|e| damaged(e, &engines))?;
        timing.add("load", milliseconds(started));
        if self.bound {
            session.always_bind();
        }
        if self.warm_up && stays {
            let started = Instant::now();
            session.warm_up(&graph.profiled)?;
            timing.add("warm_up", milliseconds(started));
        }
        Ok((session, timing))
    }

    fn open(&self, graph: &Graph, options: &SessionOptions, engines: &EngineOptions) -> Result<Session> {
        // Where engines come with a model of their own, that is loaded in place of the graph.
        let kept = engines.folder.as_deref().filter(|_| !engines.make);
        let context = kept.zip(options.provider.context()).map(|(folder, name)| folder.join(name));
        let source = match (&context, &graph.group) {
            (Some(context), _) => Source::File(context),
            (None, Some((model, ..))) => Source::Part { model, path: &graph.path },
            (None, None) => Source::File(&graph.path),
        };
        Session::load(self.runtime, source, options, engines)
    }
}

/// What failed with engines that lay there may do without them.
fn damaged(error: Error, engines: &EngineOptions) -> Error {
    match &engines.folder {
        Some(folder) => {
            let message = format!("{} (if its engines are damaged, remove {})", error.message(), folder.display());
            let named = Error::new(error.code(), message);
            match error.path() {
                Some(path) => named.at(path),
                None => named,
            }
        }
        None => error,
    }
}

impl Graph {
    /// It in words.
    fn what(&self) -> String {
        match &self.group {
            Some((_, number, of)) => format!("the graph `{}`, part {number} of {of},", self.name),
            None => format!("the graph `{}`", self.name),
        }
    }
}

impl EngineKey {
    /// The same for a graph.
    fn of(&self, graph: &Graph) -> Self {
        let file = Path::new(&graph.path).file_name().unwrap_or_default();
        Self {
            graph: file.to_string_lossy().into_owned(),
            segments: graph.segments,
            inputs: graph.profiled.clone(),
            ..self.clone()
        }
    }
}
