//! A bundle's graphs one at a time, for work that wants a stage and not an answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Options;
use super::backend::{room, stages, taken};
use super::run_report::Timing;
use super::stage::Stage;
use super::verification::Verification;
use crate::bundle::Bundle;
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::tensor::Tensor;

/// The graphs of a bundle, planned for the memory that there is, loaded when they are first run, and verified before what they
/// give is told.
pub struct Graphs {
    bundle: Arc<Bundle>,
    stages: BTreeMap<Part, Stage>,
    verification: Verification,
}

impl Graphs {
    /// Plans the graphs of a bundle that was opened, quickly or not. Without expected reports none is planned for the language
    /// model.
    ///
    /// # Errors
    /// `runtime.missing`, `runtime.version`, `device.unavailable`, `memory.limit`, `onnx.invalid`.
    pub fn open(bundle: Arc<Bundle>, options: &Options) -> Result<Self> {
        let taken = taken(&bundle, options)?;
        let stages = stages(&bundle, options, &taken, &room(&bundle, options, &taken))?.stages;
        let verification = Verification::new(&bundle, options.cache.clone(), options.threads != Some(1));
        Ok(Self { bundle, stages, verification })
    }

    /// Runs a graph ([`PARTS`]) and gives the outputs of those names, in that order. Names, shapes and types are those of
    /// [`crate::model`].
    ///
    /// # Errors
    /// `bundle.checksum`, `runtime.*`, `memory.limit` when no memory was planned for it.
    pub fn run(&mut self, part: Part, inputs: &[(&str, &Tensor)], outputs: &[&str]) -> Result<Vec<Tensor>> {
        self.verification.start(part)?;
        let stage = self.stages.get_mut(&part).ok_or_else(|| {
            Error::new(Code::MEMORY_LIMIT, format!("no memory was planned for the graph `{part}`")).at(&self.bundle.dir)
        })?;
        let results = stage.run(inputs, outputs, &mut Timing::default(), &mut || {})?;
        self.verification.wait(part)?;
        Ok(results)
    }

    /// Verifies the weights of all graphs, also of those that were not run.
    ///
    /// # Errors
    /// `bundle.checksum`, naming the file.
    pub fn verify(&mut self) -> Result<()> {
        Part::ALL.into_iter().try_for_each(|part| self.verification.start(part))?;
        Part::ALL.into_iter().try_for_each(|part| self.verification.wait(part))
    }
}
