//! Exports in reduced precision: decide, write, judge, and where the whole misses its limit decide again.

use std::path::Path;

use super::gate::{Gate, Verdict};
use super::quantize::limits::Limits;
use super::quantize::{HEADS, Reducer};
use super::sources::Loaded;
use super::stage::{self, Format, Made};
use super::{CalibrationInput, Plan};
use crate::bundle::{FileRecord, Parity, Staging, sha256_of};
use crate::calibrate::Runner;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::model::PARTS;
use crate::progress::Progress;
use crate::runtime::Runtime;

/// How often a part that misses its limit is made more exact.
const ATTEMPTS: usize = 5;

/// The file of statistics in a bundle: what `--statistics` reads.
const STATISTICS: &str = "calibration.safetensors";

/// The picture of errors in a bundle.
const PICTURE: &str = "errors.svg";

/// Writes the reduced graphs.
///
/// # Errors
/// `quantize.error` when the limits cannot be met; those of reading, running and writing.
pub(super) fn make(
    plan: &Plan,
    loaded: &Loaded,
    graphs: &[Graph; 4],
    inputs: &[CalibrationInput],
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Made> {
    let runner = match inputs {
        [] => None,
        _ => Some(Runner {
            runtime: Runtime::load(plan.library.as_deref())?,
            threads: plan.threads,
            scratch: staging.path(),
        }),
    };
    let mut reducer = Reducer::start(plan, loaded, graphs, inputs, runner, progress)?;
    let parameters = graphs.each_ref().map(Graph::parameters);
    let mut made = stage::write(&reducer.graphs()?, reducer.precisions(), parameters, loaded, staging, progress)?;
    let mut probabilities = None;
    if let Some(runner) = runner {
        let verdict = judge(plan, loaded, graphs, &mut reducer, &mut made, staging, runner, progress)?;
        probabilities = verdict.probabilities;
        for (part, found) in made.parts.iter_mut().zip(&verdict.parts) {
            part.record.parity = match found {
                Some((inputs, worst)) => Parity::Checked { inputs: *inputs, worst: *worst },
                None => Parity::NotChecked("no calibration input reaches this part".into()),
            };
        }
    }
    let statistics = reducer.statistics().map(|statistics| {
        let path = staging.path().join(STATISTICS);
        statistics.save(&path)?;
        made.files.push(listed(&path, STATISTICS)?);
        Ok::<_, Error>(STATISTICS.to_owned())
    });
    let record = reducer.record(statistics.transpose()?, probabilities);
    if let Some(picture) = super::picture::errors(&record) {
        let path = staging.path().join(PICTURE);
        std::fs::write(&path, picture).map_err(|e| Error::io(&path, "cannot write", e))?;
        made.files.push(listed(&path, PICTURE)?);
    }
    made.quantization = Some(record);
    made.slowdowns = reducer.slowdowns();
    Ok(made)
}

/// A file of the bundle, with its size and hash.
fn listed(path: &Path, name: &str) -> Result<FileRecord> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot look at the file", e))?.len();
    Ok(FileRecord { name: name.into(), bytes, sha256: sha256_of(path)? })
}

/// Judges what was written, and writes parts anew until all limits are met.
#[allow(clippy::too_many_arguments, reason = "all that an export has at hand")]
fn judge(
    plan: &Plan,
    loaded: &Loaded,
    graphs: &[Graph; 4],
    reducer: &mut Reducer<'_>,
    made: &mut Made,
    staging: &Staging,
    runner: Runner<'_>,
    progress: &mut dyn Progress,
) -> Result<Verdict> {
    let limits = Limits::of(plan.precision, plan.max_error);
    for attempt in 0.. {
        progress.step("comparing with fp32 on held-out inputs", None);
        let gate = Gate { loaded, staging, references: &reducer.references, runner, heads: &graphs[HEADS] };
        let verdict = gate.judge()?;
        let failing = verdict.failing(&limits);
        let error = verdict.error(&limits);
        if failing.is_empty() || attempt == ATTEMPTS {
            return error.map_or(Ok(verdict), Err);
        }
        for (part, shortfall) in failing {
            match (reducer.raise(part, shortfall, progress), &error) {
                (Ok(()), _) => {}
                // The limits are met, only without room to spare.
                (Err(_), None) => return Ok(verdict),
                (Err(_), Some(_)) => return error.map_or(Ok(verdict), Err),
            }
            let graph = &reducer.graphs()?[part];
            let format = Format { precision: reducer.precisions()[part], parameters: graphs[part].parameters() };
            let (summary, files) = stage::write_part(graph, PARTS[part], format, loaded, staging, progress)?;
            made.files.retain(|f| !f.name.starts_with(&format!("{}.onnx", PARTS[part])));
            made.files.extend(files);
            made.parts[part] = summary;
        }
    }
    unreachable!("the last attempt returns")
}
