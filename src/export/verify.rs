//! `--verify`: the staged bundle against stage outputs recorded in PyTorch.
//!
//! The record is a safetensors file with any of `volume`, `input_ids`, `attention_mask` (inputs) and `adapter`,
//! `vision`, `text`, `v`, `t`, `logits`, `image_logits` (stages). Stages are computed from the first input on, each
//! from the computed stage before it, so that errors add up as they do in use; where an input was not recorded, a
//! recorded stage takes its place. Tensors under other names are ignored.

use std::collections::BTreeMap;
use std::path::Path;

use super::quantize::limits::Limits;
use super::{Plan, StageCheck, StageLimit};
use crate::bundle::{Precision, Staging};
use crate::checkpoint::Checkpoint;
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::progress::Progress;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::{Comparison, DType, Tensor};

/// Maximum `max_rel` that passes in fp32.
const TOLERANCE: f64 = 1e-4;

/// The limit of a bundle of that precision.
fn limit(precision: Precision) -> StageLimit {
    match precision {
        Precision::Fp32 => StageLimit::Relative(TOLERANCE),
        reduced => StageLimit::Cosine(Limits::of(reduced, None).cosine),
    }
}

/// The graphs with their inputs and the outputs that are compared.
const RUNS: [(Part, &[&str], &[&str]); 4] = [
    (Part::Adapter, &["volume"], &["adapter"]),
    (Part::Vision, &["adapter"], &["vision"]),
    (Part::Text, &["input_ids", "attention_mask"], &["text"]),
    (Part::Heads, &["vision", "text"], &["v", "t", "logits", "image_logits"]),
];

/// Compares every recorded stage that can be computed.
///
/// # Errors
/// `verify.mismatch` with the table when a stage misses its tolerance; `verify.input` when nothing can be compared.
pub(super) fn check(
    plan: &Plan,
    record: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Vec<StageCheck>> {
    let recorded = read(record)?;
    let runtime = Runtime::load(plan.library.as_deref())?;
    let options = SessionOptions { threads: plan.threads, ..SessionOptions::default() };
    let mut values: BTreeMap<&str, Tensor> = BTreeMap::new();
    let mut checks = Vec::new();
    for (part, inputs, outputs) in RUNS {
        let wanted = outputs.iter().any(|o| recorded.contains_key(*o));
        // A computed tensor is preferred to a recorded one.
        let feed = inputs.iter().map(|name| values.get(name).or_else(|| recorded.get(*name)).map(|t| (*name, t)));
        let Some(feed) = feed.collect::<Option<Vec<_>>>().filter(|_| wanted || part != Part::Heads) else { continue };
        let mut session = Session::open(runtime, &staging.path().join(format!("{part}.onnx")), &options)?;
        let has = session.outputs();
        let outputs: Vec<&str> = outputs.iter().copied().filter(|o| has.iter().any(|h| h == o)).collect();
        let results = session.run(&feed, &outputs).map_err(|e| {
            Error::new(Code::VERIFY_INPUT, format!("the recorded inputs do not fit: {}", e.message())).at(record)
        })?;
        for (stage, found) in outputs.into_iter().zip(results) {
            if let Some(expected) = recorded.get(stage) {
                checks.push(compare(stage, &found, expected, limit(plan.precision)).map_err(|e| e.at(record))?);
            }
            values.insert(stage, found);
        }
    }
    if checks.is_empty() {
        let names: Vec<&str> = recorded.keys().map(String::as_str).collect();
        let message = format!("no stage can be compared: the file holds {}", names.join(", "));
        return Err(Error::new(Code::VERIFY_INPUT, message).at(record));
    }
    let failed: Vec<&StageCheck> = checks.iter().filter(|c| !c.passed).collect();
    if failed.is_empty() {
        return Ok(checks);
    }
    for check in &checks {
        progress.line(&check.to_string());
    }
    Err(mismatch(&failed).at(record))
}

fn mismatch(failed: &[&StageCheck]) -> Error {
    let show = |c: &&StageCheck| match c.limit {
        StageLimit::Relative(most) => {
            format!("{} relative error {:.1e} (at most {most:.0e})", c.stage, c.comparison.max_rel)
        }
        StageLimit::Cosine(least) => format!("{} cosine {:.6} (at least {least})", c.stage, c.comparison.cosine),
    };
    let bad: Vec<String> = failed.iter().map(show).collect();
    let message = format!("stages differ from the record: {}", bad.join(", "));
    Error::new(Code::VERIFY_MISMATCH, message)
}

fn compare(stage: &str, found: &Tensor, expected: &Tensor, limit: StageLimit) -> Result<StageCheck> {
    let (Tensor::F32(found), Tensor::F32(expected)) = (found, expected) else {
        return Err(Error::new(Code::VERIFY_INPUT, format!("`{stage}` is not recorded as floats")));
    };
    let comparison = Comparison::of(found, expected)
        .map_err(|e| Error::new(Code::VERIFY_MISMATCH, format!("stage `{stage}`: {e}")))?;
    let passed = match limit {
        StageLimit::Relative(most) => comparison.max_rel <= most,
        StageLimit::Cosine(least) => comparison.max_rel.is_finite() && comparison.cosine >= least,
    };
    Ok(StageCheck { stage: stage.into(), comparison, limit, passed })
}

impl std::fmt::Display for StageCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (c, verdict) = (&self.comparison, if self.passed { "ok" } else { "FAILED" });
        let allowed = match self.limit {
            StageLimit::Relative(most) => format!("relative at most {most:.0e}"),
            StageLimit::Cosine(least) => format!("cosine at least {least}"),
        };
        write!(
            f,
            "{:<12} max {:.1e}  relative {:.1e}  cosine {:.7}  ({allowed})  {verdict}",
            self.stage, c.max_abs, c.max_rel, c.cosine
        )
    }
}

/// The recorded tensors of known names: token ids and masks as int64, all else as float32.
fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = Checkpoint::open(path)?;
    let known = |name: &str| RUNS.iter().any(|(_, inputs, outputs)| inputs.contains(&name) || outputs.contains(&name));
    let mut tensors = BTreeMap::new();
    for (name, lazy) in file.iter().filter(|(name, _)| known(name)) {
        let shape = lazy.shape();
        let tensor = if name == "input_ids" || name == "attention_mask" {
            let whole = matches!(lazy.dtype(), DType::I64 | DType::I32 | DType::U8 | DType::Bool);
            let values = lazy.cast(DType::F64).bytes().map_err(|e| e.at(path))?.into_owned();
            let values = values.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as i64).collect();
            Tensor::i64(shape, values).filter(|_| whole)
        } else {
            Tensor::f32(shape, lazy.to_f32().map_err(|e| e.at(path))?)
        };
        let tensor = tensor.ok_or_else(|| {
            Error::new(Code::VERIFY_INPUT, format!("`{name}` has an unusable type {}", lazy.dtype())).at(path)
        })?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}
