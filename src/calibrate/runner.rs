//! Graphs that are written to a scratch folder, loaded for a few runs, and forgotten.

use std::path::Path;

use super::Feed;
use crate::error::{Error, Result};
use crate::graph::{Graph, ValueId};
use crate::onnx::{self, DataLayout};
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::{DType, Tensor};

/// How graphs are run, and where their files go.
#[derive(Clone, Copy)]
pub struct Runner<'a> {
    /// The runtime.
    pub runtime: &'a Runtime,
    /// Threads within an operator; by default one per core.
    pub threads: Option<usize>,
    /// A folder for temporary files: a block's weights.
    pub scratch: &'a Path,
    /// Where the weights lie in the scratch folder already, when the whole graph was written there.
    pub layout: Option<&'a DataLayout>,
}

impl Runner<'_> {
    /// Writes a graph to the scratch folder and loads it, for a few runs: weights stay in their mapped file, except
    /// where that would be more than ten times slower. The files are removed with the session.
    ///
    /// # Errors
    /// `io`, `disk.full`, `runtime.model`, and those of reading the weights.
    pub fn open(&self, graph: &Graph) -> Result<LoadedGraph> {
        let is_fp16 = |id: ValueId| graph.value(id).init.as_ref().is_some_and(|t| t.dtype() == DType::F16);
        // For a few runs a block of fp16 weights need not be held in memory in float32 as a whole.
        let fold = !graph.initializers().into_iter().any(is_fp16);
        self.load(graph, graph.nodes.iter().any(|n| n.op.kind == "MatMulNBits"), fold)
    }

    /// As [`Self::open`], with all weights prepacked: as a graph is loaded for many runs.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_prepacked(&self, graph: &Graph) -> Result<LoadedGraph> {
        self.load(graph, true, true)
    }

    fn load(&self, graph: &Graph, prepack: bool, fold: bool) -> Result<LoadedGraph> {
        let folder = tempfile::Builder::new().prefix("ba-run-").tempdir_in(self.scratch);
        let folder = folder.map_err(|e| Error::io(self.scratch, "cannot make a temporary folder", e))?;
        let path = match self.layout {
            // External data must lie in the folder of the graph.
            Some(layout) => {
                let stem = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                onnx::write_part_of(graph, self.scratch, &stem, layout)?;
                self.scratch.join(format!("{stem}.onnx"))
            }
            None => {
                onnx::write_scratch(graph, folder.path(), "graph")?;
                folder.path().join("graph.onnx")
            }
        };
        let options = SessionOptions { threads: self.threads, prepack, fold, ..SessionOptions::default() };
        let session = Session::open(self.runtime, &path, &options);
        if self.layout.is_some() {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the temporary file", e))?;
        }
        let session = session?;
        Ok(LoadedGraph { session, _folder: folder })
    }
}

/// A loaded graph with its temporary files.
pub struct LoadedGraph {
    session: Session,
    _folder: tempfile::TempDir,
}

impl LoadedGraph {
    /// Runs the graph on those tensors of `feed` that are its inputs; returns the outputs of these names, in that
    /// order.
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
