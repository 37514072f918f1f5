//! The gate of a reduced bundle: the staged graphs, as they will be run, against float32 on held-out inputs.

use std::path::Path;

use super::inputs;
use super::quantize::limits::Limits;
use super::quantize::references::References;
use super::quantize::{ADAPTER, HEADS, TEXT, VISION};
use super::sources::Loaded;
use crate::bundle::Staging;
use crate::calibrate::Runner;
use crate::error::{Code, Error, Result};
use crate::graph::Graph;
use crate::model::PARTS;
use crate::runtime::{Device, Session, SessionOptions};
use crate::tensor::{Comparison, Tensor};

/// Weights of a part beyond which they stay in their mapped file while the part is judged.
const MAPPED_BYTES: u64 = 2 << 30;

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// For each part the number of inputs and the worst of them.
    pub parts: [Option<(usize, Comparison)>; 4],
    /// Largest difference of a probability, from scan and report to classes.
    pub probabilities: Option<f64>,
}

impl Verdict {
    /// Parts that miss a limit, with how many times their distance must shrink.
    pub fn failing(&self, limits: &Limits) -> Vec<(usize, f64)> {
        // The adapter is taken or left as a whole: a little room more is no reason to leave it.
        let room = |part: usize| if part == ADAPTER { limits.aim } else { 1.0 };
        let short = |part: usize| self.parts[part].as_ref().map(|(_, c)| limits.shortfall(distance(c)) * room(part));
        // Even a part that meets its limit must do so with room to spare where that can still be had.
        let mut failing: Vec<(usize, f64)> = [ADAPTER, VISION, TEXT]
            .into_iter()
            .filter_map(|part| Some((part, short(part)?)).filter(|(_, s)| *s > 1.0))
            .collect();
        let far = self.probabilities.map_or(0.0, |p| p / limits.probability);
        if failing.is_empty() && far > 1.0 {
            // The part that contributes most.
            let worst = [VISION, TEXT].into_iter().filter_map(|part| Some((part, short(part)?)));
            let worst = worst.max_by(|a, b| a.1.total_cmp(&b.1));
            failing.extend(worst.map(|(part, _)| (part, far * far)));
        }
        failing
    }

    /// The first limit that is missed, as an error.
    pub fn error(&self, limits: &Limits) -> Option<Error> {
        for part in [ADAPTER, VISION, TEXT] {
            let Some((_, c)) = &self.parts[part] else { continue };
            if distance(c) > 1.0 - limits.cosine {
                let (name, least) = (PARTS[part], limits.cosine);
                let message =
                    format!("the graph `{name}` has cosine {:.6} to fp32, expected at least {least}", c.cosine);
                return Some(Error::new(Code::QUANTIZE_ERROR, message));
            }
        }
        let far = self.probabilities.filter(|p| *p > limits.probability)?;
        let most = limits.probability;
        let message = format!("a probability differs by {far:.3} from fp32, allowed are {most}");
        Some(Error::new(Code::QUANTIZE_ERROR, message))
    }
}

/// What is judged.
pub(super) struct Gate<'a> {
    pub loaded: &'a Loaded,
    pub staging: &'a Staging,
    pub references: &'a References,
    pub runner: Runner<'a>,
    /// The float32 heads.
    pub heads: &'a Graph,
}

impl Gate<'_> {
    /// Judges the staged graphs.
    ///
    /// # Errors
    /// Those of the runtime and of reading scans.
    pub fn judge(&self) -> Result<Verdict> {
        let scans: Vec<usize> =
            (0..self.references.scans.len()).filter(|&i| self.references.scans[i].role.judges()).collect();
        let reports: Vec<usize> =
            (0..self.references.reports.len()).filter(|&i| self.references.reports[i].role.judges()).collect();
        let mut verdict = Verdict::default();
        let mut maps = Vec::new();
        if !scans.is_empty() {
            let mut session = self.open(PARTS[ADAPTER])?;
            for &i in &scans {
                let scan = &self.references.scans[i];
                let volume = inputs::scan(self.loaded, &scan.path)?;
                let map = one(session.run(&[("volume", &volume)], &["adapter"])?);
                verdict.add(ADAPTER, &map, &scan.adapter)?;
                maps.push(map);
            }
        }
        let mut visions = Vec::new();
        if !scans.is_empty() {
            let mut session = self.open(PARTS[VISION])?;
            for (&i, map) in scans.iter().zip(maps) {
                let scan = &self.references.scans[i];
                let vision = one(session.run(&[("adapter", &scan.adapter)], &["vision"])?);
                verdict.add(VISION, &vision, &scan.vision)?;
                visions.push((i, one(session.run(&[("adapter", &map)], &["vision"])?)));
            }
        }
        let mut texts = Vec::new();
        if !reports.is_empty() {
            let mut session = self.open(PARTS[TEXT])?;
            for &i in &reports {
                let report = &self.references.reports[i];
                let feed: Vec<(&str, &Tensor)> = report.tokens.iter().map(|(n, t)| (n.as_str(), t)).collect();
                let text = one(session.run(&feed, &["text"])?);
                verdict.add(TEXT, &text, &report.text)?;
                texts.push((i, text));
            }
        }
        self.judge_heads(&visions, &texts, &mut verdict)?;
        Ok(verdict)
    }

    /// The heads by themselves, and the probabilities at the end of the whole chain.
    fn judge_heads(&self, visions: &[(usize, Tensor)], texts: &[(usize, Tensor)], verdict: &mut Verdict) -> Result<()> {
        let pairs = self.references.pairs();
        if pairs.is_empty() {
            return Ok(());
        }
        let mut single = self.runner.open(self.heads)?;
        let mut staged = self.open(PARTS[HEADS])?;
        let find = |all: &[(usize, Tensor)], i: usize| all.iter().find(|(j, _)| *j == i).map(|(_, t)| t.clone());
        for (scan, report) in pairs {
            let (vision, text) = (&self.references.scans[scan].vision, &self.references.reports[report].text);
            let outputs = ["logits", "v", "t"];
            let feed = [("vision".to_owned(), vision.clone()), ("text".to_owned(), text.clone())].into();
            let expected = single.run(&feed, &outputs)?;
            let alone = staged.run(&[("vision", vision), ("text", text)], &outputs)?;
            for (found, expected) in alone.iter().zip(&expected) {
                verdict.add(HEADS, found, expected)?;
            }
            let (Some(vision), Some(text)) = (find(visions, scan), find(texts, report)) else { continue };
            let chain = one(staged.run(&[("vision", &vision), ("text", &text)], &["logits"])?);
            let difference = probabilities(&chain)
                .iter()
                .zip(probabilities(&expected[0]))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            verdict.probabilities = Some(verdict.probabilities.unwrap_or(0.0).max(difference));
        }
        Ok(())
    }

    fn open(&self, part: &str) -> Result<Session> {
        let path = self.staging.path().join(format!("{part}.onnx"));
        let weights = std::fs::metadata(path.with_extension("onnx.data")).map_or(0, |m| m.len());
        let options = SessionOptions {
            device: Device::Cpu,
            threads: self.runner.threads,
            prepack: weights < MAPPED_BYTES || needs_prepacking(&path),
            ..SessionOptions::default()
        };
        Session::open(self.runner.runtime, &path, &options)
    }
}

/// Blocks of integers are more than ten times slower without being laid out anew.
fn needs_prepacking(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.windows(11).any(|w| w == b"MatMulNBits"))
}

impl Verdict {
    fn add(&mut self, part: usize, found: &Tensor, expected: &Tensor) -> Result<()> {
        let failed = |e: String| Error::new(Code::RUNTIME_RUN, format!("the graph `{}`: {e}", PARTS[part]));
        let (Tensor::F32(found), Tensor::F32(expected)) = (found, expected) else {
            return Err(failed("its outputs are not float32".into()));
        };
        let comparison = Comparison::of(found, expected).map_err(failed)?;
        let known = self.parts[part].take();
        self.parts[part] = Some(match known {
            Some((n, worst)) => (n + 1, worst.worst(&comparison)),
            None => (1, comparison),
        });
        Ok(())
    }
}

/// `1 - cosine`; infinite when a value is, or is no number: a cosine would lose it in a minimum.
fn distance(c: &Comparison) -> f64 {
    if c.max_rel.is_finite() && c.cosine.is_finite() { 1.0 - c.cosine } else { f64::INFINITY }
}

/// Softmax of the first row.
fn probabilities(logits: &Tensor) -> Vec<f64> {
    let logits = logits.as_f32().unwrap_or_default();
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|l| f64::from(l - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// The only result of a run with one output.
fn one(results: Vec<Tensor>) -> Tensor {
    results.into_iter().next().expect("a run gives one tensor an output")
}
