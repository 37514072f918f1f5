//! The parity check of an fp32 export: each staged graph against the plain fp32 graph.
//!
//! The plain graphs have no folded norms and decomposed attention, and ONNX Runtime runs them operator by operator,
//! without optimizations. Both sides of a part get the same inputs: the plain side's results of the part before.

use std::path::{Path, PathBuf};

use super::sources::Loaded;
use super::{CalibrationInput, PartSummary, Plan, inputs};
use crate::bundle::{Parity, Staging};
use crate::error::{Code, Error, Result, WarningTally};
use crate::graph::Graph;
use crate::model::{self, Attention, Models, Part, PartMap, Stages};
use crate::onnx;
use crate::progress::Progress;
use crate::runtime::{Runtime, Session, SessionOptions};
use crate::tensor::{Comparison, Tensor};

/// Largest `max_rel` of an fp32 graph against the plain one: far above rounding, far below any real mistake.
const MAX_RELATIVE: f64 = 1e-3;

/// Largest language model, in bytes of weights, that is compared: its plain form runs in memory as a whole.
const MAX_TEXT_BYTES: u64 = 6 << 30;

/// The inputs of a part, one item per run.
pub(super) type Feeds = Vec<Vec<(&'static str, Tensor)>>;

/// Compares all parts and records the result in `parts`.
///
/// # Errors
/// `verify.mismatch` when a part differs; those of reading inputs (`calibration.input`) and of the runtime.
pub(super) fn check(
    plan: &Plan,
    loaded: &Loaded,
    models: &Models,
    staging: &Staging,
    inputs: &[CalibrationInput],
    parts: &mut PartMap<PartSummary>,
    progress: &mut dyn Progress,
) -> Result<()> {
    let checker = Checker { threads: plan.threads, staging, runtime: Runtime::load(plan.library.as_deref())? };
    let config = &loaded.config;
    let scans = scan_feeds(loaded, inputs, progress)?;
    let adapter = model::adapter::build(config, &models.trained)?;
    let [maps] = checker.part(&mut parts[Part::Adapter], &adapter, scans, ["adapter"])?;
    let plain = model::vit::build(config, &models.vision, Attention::Decomposed, Stages::Output)?;
    let [visions] = checker.part(&mut parts[Part::Vision], &plain, feeds("adapter", maps), ["vision"])?;
    let texts = if parts[Part::Text].record.bytes > MAX_TEXT_BYTES {
        let limit = MAX_TEXT_BYTES >> 30;
        parts[Part::Text].record.parity = Parity::NotChecked(format!("more than {limit} GiB of weights"));
        Vec::new()
    } else {
        let plain = model::llama::build(&loaded.llama, config.text.pool, &models.text, Stages::Output)?;
        let reports = report_feeds(loaded, inputs)?;
        let [texts] = checker.part(&mut parts[Part::Text], &plain, reports, ["text"])?;
        texts
    };
    let both = visions.into_iter().zip(texts).map(|(v, t)| vec![("vision", v), ("text", t)]).collect();
    let plain = model::heads::build(config, &models.trained)?;
    checker.part(&mut parts[Part::Heads], &plain, both, ["v", "t", "logits", "similarity"])?;
    Ok(())
}

pub(super) fn feeds(name: &'static str, tensors: Vec<Tensor>) -> Feeds {
    tensors.into_iter().map(|t| vec![(name, t)]).collect()
}

fn scan_feeds(loaded: &Loaded, inputs: &[CalibrationInput], progress: &mut dyn Progress) -> Result<Feeds> {
    let mut tally = WarningTally::default();
    let read = |path: &PathBuf| Ok(vec![("volume", inputs::counted_scan(&loaded.config.volume, path, &mut tally)?)]);
    let feeds = inputs.iter().filter_map(|i| i.scan.as_ref()).map(read).collect::<Result<Feeds>>()?;
    tally.warnings("calibration scans").iter().for_each(|warning| progress.warn(warning));
    Ok(feeds)
}

fn report_feeds(loaded: &Loaded, inputs: &[CalibrationInput]) -> Result<Feeds> {
    let tokenizer = loaded.tokenizer.load()?;
    let read = |path: &PathBuf| {
        let [ids, mask] = inputs::report(loaded.config.text.max_tokens, &tokenizer, path)?;
        Ok(vec![("input_ids", ids), ("attention_mask", mask)])
    };
    inputs.iter().filter_map(|i| i.report.as_ref()).map(read).collect()
}

/// Compares one part at a time.
pub(super) struct Checker<'a> {
    pub threads: Option<usize>,
    pub staging: &'a Staging,
    pub runtime: &'a Runtime,
}

impl Checker<'_> {
    /// Runs the plain and the staged graph on all feeds, records the worst comparison, and returns the plain
    /// results by output.
    pub fn part<const N: usize>(
        &self,
        part: &mut PartSummary,
        plain: &Graph,
        feeds: Feeds,
        outputs: [&str; N],
    ) -> Result<[Vec<Tensor>; N]> {
        let mut results = std::array::from_fn(|_| Vec::new());
        if feeds.is_empty() {
            part.record.parity = Parity::NotChecked("no calibration input reaches this part".into());
            return Ok(results);
        }
        let folder = tempfile::Builder::new().prefix("ba-plain-").tempdir_in(self.staging.path());
        let folder = folder.map_err(|e| Error::io(self.staging.path(), "cannot make a temporary folder", e))?;
        onnx::write_scratch(plain, folder.path(), "plain")?;
        let plain = self.run(&folder.path().join("plain.onnx"), false, &feeds, &outputs)?;
        drop(folder);
        let staged = self.run(&self.staging.path().join(&part.record.file), true, &feeds, &outputs)?;
        let mut worst = Comparison { max_abs: 0.0, max_rel: 0.0, cosine: 1.0 };
        for (plain, staged) in plain.iter().flatten().zip(staged.iter().flatten()) {
            worst = worst.worst(&compare(part.part, staged, plain)?);
        }
        if worst.max_rel > MAX_RELATIVE {
            let message = format!(
                "the graph `{}` differs from its plain form by {:.1e} (relative), expected at most {MAX_RELATIVE:.0e}",
                part.part, worst.max_rel
            );
            return Err(Error::new(Code::VERIFY_MISMATCH, message));
        }
        part.record.parity = Parity::Checked { inputs: feeds.len(), worst };
        for row in plain {
            row.into_iter().zip(&mut results).for_each(|(tensor, column)| column.push(tensor));
        }
        Ok(results)
    }

    fn run(&self, path: &Path, optimize: bool, feeds: &Feeds, outputs: &[&str]) -> Result<Vec<Vec<Tensor>>> {
        let options = SessionOptions { threads: self.threads, optimize, ..SessionOptions::default() };
        let mut session = Session::open(self.runtime, path, &options)?;
        feeds
            .iter()
            .map(|feed| {
                let feed: Vec<(&str, &Tensor)> = feed.iter().map(|(n, t)| (*n, t)).collect();
                session.run(&feed, outputs)
            })
            .collect()
    }
}

fn compare(part: Part, staged: &Tensor, plain: &Tensor) -> Result<Comparison> {
    let differ = |what: String| Error::new(Code::VERIFY_MISMATCH, format!("the graph `{part}`: {what}"));
    match (staged, plain) {
        (Tensor::F32(staged), Tensor::F32(plain)) => Comparison::of(staged, plain).map_err(differ),
        _ => Err(differ("its outputs are not float32".into())),
    }
}
