//! Loads a graph's sessions: engines first where the provider builds them, then the session, then one run to warm it
//! up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::cache::engines::{EngineCache, EngineKey, EngineSource};
use super::run_report::{Timing, milliseconds};
use super::verification::{ReadGraph, SourceFiles};
use crate::error::{Error, Result};
use crate::model::Part;
use crate::runtime::{EngineOptions, ProfiledInput, Runtime, Session, SessionOptions, Source};

/// How the graphs of a run are loaded.
#[derive(Clone)]
pub(super) struct Loader {
    /// ONNX Runtime.
    pub runtime: &'static Runtime,
    /// Provider and threads.
    pub options: SessionOptions,
    /// Whether inputs and outputs are bound, as on a GPU: results stay where they are made.
    pub bound: bool,
    /// Whether weights are read instead of mapped.
    pub read_weights: bool,
    /// Whether a session is run once after it is loaded.
    pub warm_up: bool,
    /// Where engines are kept, and what they depend on except for the graph; none where none are built, or kept.
    pub engines: Option<(EngineCache, EngineKey)>,
    /// Whether sessions may be released on another thread.
    pub background_release: bool,
}

/// What a session is loaded from: a graph of the bundle, or one group of its blocks.
#[derive(Clone)]
pub(super) struct LoadSpec {
    /// The part, for messages.
    pub part: Part,
    /// The whole graph's file.
    pub path: PathBuf,
    /// The files that it is read from.
    pub files: SourceFiles,
    /// The group as a graph in memory; none for the whole.
    pub group: Option<GroupModel>,
    /// The first segment, and the one behind the last.
    pub segments: [usize; 2],
    /// Bytes of their weights.
    pub weights: u64,
    /// The sizes of dynamic inputs that engines are built for.
    pub profiled: Vec<ProfiledInput>,
}

/// A group of blocks as a graph of its own, over the whole graph's data file.
#[derive(Clone)]
pub(super) struct GroupModel {
    /// The ONNX model.
    pub model: Arc<Vec<u8>>,
    /// Which group it is, from 1.
    pub number: usize,
    /// Of how many.
    pub of: usize,
}

impl Loader {
    /// Loads a session, and warms it up where that is wanted and the session `stays` loaded; gives the milliseconds of
    /// each step.
    ///
    /// # Errors
    /// `device.unavailable`, `device.memory`, `runtime.*`; `bundle.changed`, `bundle.replaced`; `io` and `disk.full`
    /// where engines are kept.
    pub fn load(&self, spec: &LoadSpec, options: &SessionOptions, stays: bool) -> Result<(Session, Timing)> {
        let mut timing = Timing::default();
        let mut engines = EngineOptions { inputs: spec.profiled.clone(), ..EngineOptions::default() };
        if let Some((cache, key)) = &self.engines {
            let started = Instant::now();
            let key = key.of(spec);
            let source =
                EngineSource { what: &spec.describe(), weights: spec.weights, context: options.provider.context() };
            engines.folder = cache.folder(&key, &source, &mut |folder| {
                let engines = EngineOptions { folder: Some(folder.to_path_buf()), make: true, ..engines.clone() };
                // Built when the graph is loaded or first run; written when the session is dropped.
                self.open(spec, options, &engines)?.warm_up(&spec.profiled)
            })?;
            timing.add("engines", milliseconds(started));
        }
        let started = Instant::now();
        let mut session = self.open(spec, options, &engines).map_err(|e| name_engines(e, &engines))?;
        timing.add("load", milliseconds(started));
        if self.bound {
            session.always_bind();
        }
        if self.warm_up && stays {
            let started = Instant::now();
            session.warm_up(&spec.profiled)?;
            timing.add("warm_up", milliseconds(started));
        }
        Ok((session, timing))
    }

    fn open(&self, spec: &LoadSpec, options: &SessionOptions, engines: &EngineOptions) -> Result<Session> {
        // Where engines come with a context model, that is loaded in place of the graph.
        let kept = engines.folder.as_deref().filter(|_| !engines.make);
        let context = kept.zip(options.provider.context()).map(|(folder, name)| folder.join(name));
        if self.read_weights && context.is_none() && spec.group.is_none() {
            let ReadGraph { graph, weights } = spec.files.read(&spec.path)?;
            let source = Source::Read { model: &graph, weights: &weights, path: &spec.path };
            return Session::load(self.runtime, source, options, engines);
        }
        let source = match (&context, &spec.group) {
            (Some(context), _) => Source::File(context),
            (None, Some(group)) => Source::Part { model: &group.model, path: &spec.path },
            (None, None) => Source::File(&spec.path),
        };
        spec.files.while_loading(|| Session::load(self.runtime, source, options, engines))
    }
}

/// Names the folder of engines in an error: without damaged engines the same run may succeed.
fn name_engines(error: Error, engines: &EngineOptions) -> Error {
    let Some(folder) = &engines.folder else { return error };
    let message = format!("{} (if its engines are damaged, remove {})", error.message(), folder.display());
    let named = Error::new(error.code(), message);
    match error.path() {
        Some(path) => named.at(path),
        None => named,
    }
}

impl LoadSpec {
    /// The graph in words, for messages.
    fn describe(&self) -> String {
        match &self.group {
            Some(group) => format!("the graph `{}`, group {} of {},", self.part, group.number, group.of),
            None => format!("the graph `{}`", self.part),
        }
    }
}

impl EngineKey {
    /// The key of one graph's engines.
    fn of(&self, spec: &LoadSpec) -> Self {
        let file = Path::new(&spec.path).file_name().unwrap_or_default();
        Self {
            graph: file.to_string_lossy().into_owned(),
            segments: spec.segments,
            inputs: spec.profiled.clone(),
            ..self.clone()
        }
    }
}
