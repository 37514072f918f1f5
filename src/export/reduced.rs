//! Exports in reduced precision: decide, write, judge, and where the whole misses its limit decide again.

use std::path::Path;

use super::gate::{Gate, Verdict};
use super::numeric_format::NumericFormat;
use super::quantize::limits::Limits;
use super::quantize::{HEADS, Reducer, TEXT};
use super::sources::Loaded;
use super::stage::{self, Format, Made};
use super::{CalibrationInput, Plan};
use crate::bundle::{FileRecord, Parity, Staging, sha256_of};
use crate::calibrate::Runner;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::model::PARTS;
use crate::plot;
use crate::progress::Progress;
use crate::runtime::Runtime;

/// How often a part that misses its limit is made more exact.
const ATTEMPTS: u32 = 6;

/// The file of statistics in a bundle: what `--statistics` reads.
pub(super) const STATISTICS: &str = "calibration.safetensors";

/// The picture of errors in a bundle.
pub(super) const PICTURE: &str = "errors.svg";

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
            placed: None,
        }),
    };
    let mut reducer = Reducer::start(plan, loaded, graphs, inputs, runner, progress)?;
    let parameters = graphs.each_ref().map(Graph::parameters);
    let staged = reducer.graphs()?;
    let mut made = stage::write(&staged, reducer.precisions(), parameters, loaded, staging, progress)?;
    let mut probabilities = None;
    if let Some(runner) = runner {
        let verdict = judge(plan, loaded, graphs, staged, &mut reducer, &mut made, staging, runner, progress)?;
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
    if let Some(picture) = plot::layer_errors(&record) {
        let path = staging.path().join(PICTURE);
        std::fs::write(&path, picture).map_err(|e| Error::io(&path, "cannot write", e))?;
        made.files.push(listed(&path, PICTURE)?);
    }
    made.quantization = Some(record);
    made.slowdowns = reducer.slowdowns();
    Ok(made)
}

/// A file of the bundle, with its size and hash.
pub(super) fn listed(path: &Path, name: &str) -> Result<FileRecord> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot look at the file", e))?.len();
    Ok(FileRecord { name: name.into(), bytes, sha256: sha256_of(path)? })
}

/// Removes the files of a part.
fn remove_staged(staging: &Staging, made: &mut Made, part: usize) -> Result<()> {
    let old = |f: &FileRecord| f.name.starts_with(&format!("{}.", PARTS[part]));
    for file in made.files.iter().filter(|f| old(f)) {
        let path = staging.path().join(&file.name);
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the old file", e))?;
    }
    made.files.retain(|f| !old(f));
    Ok(())
}

/// Judges what was written, and writes parts anew until all limits are met.
#[allow(clippy::too_many_arguments, reason = "all that an export has at hand")]
fn judge(
    plan: &Plan,
    loaded: &Loaded,
    graphs: &[Graph; 4],
    mut staged: [Graph; 4],
    reducer: &mut Reducer<'_>,
    made: &mut Made,
    staging: &Staging,
    runner: Runner<'_>,
    progress: &mut dyn Progress,
) -> Result<Verdict> {
    let limits =
        |part: usize| Limits::of_part(NumericFormat::of(plan.precision, plan.target), PARTS[part], plan.max_error);
    let (mut verdict, mut written) = (Verdict::default(), [true; 4]);
    for attempt in 1.. {
        progress.step("comparing with fp32 on held-out inputs", None);
        let gate = Gate {
            config: &loaded.config,
            staging,
            references: &reducer.references,
            runner,
            heads: &graphs[HEADS],
            text: Some((&staged[TEXT], &made.placed[TEXT])),
        };
        gate.judge(&mut verdict, written)?;
        written = [false; 4];
        if attempt <= ATTEMPTS {
            for (part, shortfall) in verdict.failing(&limits) {
                // What earlier attempts did not reach is asked for more firmly.
                let firmly = 1.0 + 0.25 * f64::from(attempt - 1);
                if reducer.raise(part, shortfall * firmly) {
                    // What is decided anew goes at once: the walk's files take its place on the disk.
                    remove_staged(staging, made, part)?;
                    reducer.decide_again(part, progress)?;
                    written[part] = true;
                }
            }
        }
        if written == [false; 4] {
            return verdict.error(&limits).map_or(Ok(verdict), Err);
        }
        staged = reducer.graphs()?;
        let precisions = reducer.precisions();
        for part in (0..PARTS.len()).filter(|&part| written[part]) {
            let format = Format { precision: precisions[part], parameters: graphs[part].parameters() };
            progress.step(&format!("writing {}", PARTS[part]), Some(stage::weight_bytes(&staged[part])));
            let (summary, files, placed) = stage::write_part(
                &staged[part],
                PARTS[part],
                format,
                loaded.checkpoint_of(PARTS[part]),
                staging,
                progress,
            )?;
            made.files.extend(files);
            made.placed[part] = placed;
            made.parts[part] = summary;
        }
    }
    unreachable!("without an attempt left nothing is written, and the loop returns")
}
