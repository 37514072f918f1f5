//! Running one graph of a predictor: prepared, run where it was planned, and verified before anything is told.

use std::time::Instant;

use super::predictor::Predictor;
use crate::error::{Code, Error, Result};
use crate::execute::Timing;
use crate::execute::{Stage, milliseconds};
use crate::model::Part;
use crate::runtime::{Input, OutputPlacement, RuntimeValue};
use crate::tensor::Tensor;

impl Predictor {
    /// Runs a graph on tensors.
    pub(super) fn run(
        &mut self,
        part: Part,
        inputs: &[(&str, &Tensor)],
        outputs: &[&str],
        timing: &mut Timing,
    ) -> Result<Vec<Tensor>> {
        let inputs = inputs.iter().map(|(name, tensor)| Ok((*name, self.row_major(tensor)?)));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs: Vec<_> = outputs.iter().map(|name| (*name, OutputPlacement::Host)).collect();
        let results = self.flow(part, &inputs, &outputs, timing)?;
        Ok(results.into_iter().filter_map(RuntimeValue::host).collect())
    }

    pub(super) fn flow(
        &mut self,
        part: Part,
        inputs: &[(&str, Input<'_>)],
        outputs: &[(&str, OutputPlacement)],
        timing: &mut Timing,
    ) -> Result<Vec<RuntimeValue>> {
        self.prepare(part, timing)?;
        let mut stage = self.take_stage(part)?;
        let mut began = None;
        let results = stage.flow(inputs, outputs, timing, &mut || {
            began.get_or_insert_with(Instant::now);
        });
        let opened = results.is_ok() && stage.take_opened();
        self.stages.insert(part, stage);
        if let Some(began) = began {
            self.begins(began);
        }
        let results = results?;
        // Nothing is computed with parts of two bundles.
        if opened {
            self.bundle.still_here()?;
        }
        Ok(results)
    }

    /// A graph, to be put back when it has run.
    pub(super) fn take_stage(&mut self, part: Part) -> Result<Stage> {
        self.stages.remove(&part).ok_or_else(|| {
            let message = format!("no memory was planned for the graph `{part}`: the options expect no report");
            Error::new(Code::MEMORY_LIMIT, message).at(&self.bundle.dir)
        })
    }

    /// Notes when a first run began.
    pub(super) fn begins(&mut self, at: Instant) {
        let ms = at.saturating_duration_since(self.opened).as_secs_f64() * 1e3;
        self.began = Some(self.began.map_or(ms, |before| before.min(ms)));
    }

    /// What comes before a graph is loaded: its weights begin to be verified, or a laid-out copy of it is found or made.
    pub(super) fn prepare(&mut self, part: Part, timing: &mut Timing) -> Result<()> {
        // Small weights are laid out in no time.
        let large = !self.bundle.large_files(part).is_empty();
        let stage = self.stages.get_mut(&part).filter(|stage| large && stage.whole());
        let (Some(prepacked), Some(stage)) = (&self.prepacked, stage) else { return self.verification.start(part) };
        if stage.is_prepacked() {
            return Ok(());
        }
        let path = match prepacked.find(part) {
            Some(path) => path,
            None => {
                let started = Instant::now();
                self.verification.start(part)?;
                self.verification.wait(part)?;
                let need = self.bundle.manifest.parts[part.as_str()].bytes.saturating_mul(9) / 4;
                let path = prepacked.make(part, stage.path(), need, self.taken.runtime, &stage.options())?;
                timing.add("prepack", milliseconds(started));
                path
            }
        };
        stage.take_prepacked(path);
        Ok(())
    }

    /// Waits until the weights of these parts are verified.
    pub(super) fn verified(&mut self, parts: &[Part], timing: &mut Timing) -> Result<()> {
        let started = Instant::now();
        parts.iter().try_for_each(|part| self.verification.wait(*part))?;
        let waited = milliseconds(started);
        if waited > 1.0 {
            timing.add("verify", waited);
        }
        Ok(())
    }
}
