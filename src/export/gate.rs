//! The gate of a reduced bundle: the staged graphs, as they will be run, against float32 on held-out inputs.
//!
//! Each part is judged by itself, on float32's results of the part before, and the chain of all parts by its
//! probabilities: from scan and report, and from the scan alone where the model has an image-only classifier.

use std::sync::Arc;

use super::inputs;
use super::quantize::limits::Limits;
use super::quantize::references::References;
use super::quantize::{ADAPTER, HEADS, TEXT, VISION};
use crate::bundle::Staging;
use crate::calibrate::{Feed, Inputs, Role, Runner, Wanted, walk};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Segment};
use crate::metrics::softmax;
use crate::model::PARTS;
use crate::onnx::DataLayout;
use crate::progress::Silent;
use crate::runtime::{Session, SessionOptions};
use crate::tensor::{Comparison, Tensor};

/// Weights of a language model beyond which it is judged block by block.
const WHOLE_BYTES: u64 = 512 << 20;

/// What was found, and the chain's results that the next part is judged with.
#[derive(Default)]
pub(super) struct Verdict {
    /// For each part the number of inputs and the worst of them.
    pub parts: [Option<(usize, Comparison)>; 4],
    /// Largest difference of a probability.
    pub probabilities: Option<f64>,
    /// The vision transformer on the staged adapter's results, against float32 throughout.
    pub chain: Option<Comparison>,
    /// Results of the staged adapter, and of the staged vision transformer on them, by scan; those of the staged language
    /// model by report.
    pub maps: Vec<(usize, Tensor)>,
    pub visions: Vec<(usize, Tensor)>,
    pub texts: Vec<(usize, Tensor)>,
}

impl Verdict {
    /// Parts that are not where they should be, with how many times their distance must shrink.
    pub fn failing(&self, limits: &dyn Fn(usize) -> Limits) -> Vec<(usize, f64)> {
        // Adapter and heads are taken or left as a whole: a little room more is no reason to leave them.
        let whole = |part: usize| part == ADAPTER || part == HEADS;
        let short = |part: usize| {
            let (inputs, comparison) = self.parts[part].as_ref()?;
            let (limits, distance) = (limits(part), distance(comparison));
            Some(if whole(part) { limits.excess(distance) } else { limits.shortfall(distance, *inputs) })
        };
        let mut failing: Vec<(usize, f64)> =
            (0..PARTS.len()).filter_map(|part| Some((part, short(part)?)).filter(|(_, s)| *s > 1.0)).collect();
        let far = self.probabilities.map_or(0.0, |p| p / limits(HEADS).probability);
        if failing.is_empty() && far > 1.0 {
            failing.push((self.blamed(), far * far));
        }
        failing
    }

    /// The part that moves the probabilities most: the adapter where it makes the vision transformer's result clearly
    /// worse, else vision or text by their own distance.
    fn blamed(&self) -> usize {
        let [_, vision, text, _] = self.parts.each_ref().map(|p| p.as_ref().map_or(0.0, |(_, c)| distance(c)));
        match self.chain.as_ref().map(distance) {
            Some(chain) if chain > 2.0 * vision && chain > text => ADAPTER,
            _ if vision > text => VISION,
            _ => TEXT,
        }
    }

    /// The first limit that is missed, as an error.
    pub fn error(&self, limits: &dyn Fn(usize) -> Limits) -> Option<Error> {
        for (part, name) in PARTS.iter().enumerate() {
            let Some((_, c)) = &self.parts[part] else { continue };
            let least = limits(part).cosine;
            if distance(c) > 1.0 - least {
                let found = c.cosine;
                let message = format!(
                    "the graph `{name}` has cosine {found:.6} to fp32, expected at least {least}: \
                     calibrate on more inputs, lower --max-error, or choose another precision"
                );
                return Some(Error::new(Code::QUANTIZE_ERROR, message));
            }
        }
        let most = limits(HEADS).probability;
        let far = self.probabilities.filter(|p| *p > most)?;
        let message = format!(
            "a probability differs by {far:.3} from fp32, allowed are {most}: \
             calibrate on more inputs, lower --max-error, or choose another precision"
        );
        Some(Error::new(Code::QUANTIZE_ERROR, message))
    }

    /// Adds one input's results of a part.
    fn add(&mut self, part: usize, pairs: &[(&Tensor, &Tensor)]) -> Result<()> {
        let mut worst: Option<Comparison> = None;
        for (found, expected) in pairs {
            let comparison = compare(part, found, expected)?;
            worst = Some(worst.map_or(comparison, |w| w.worst(&comparison)));
        }
        if let Some(new) = worst {
            let known = self.parts[part].take();
            self.parts[part] = Some(known.map_or((1, new), |(n, old)| (n + 1, old.worst(&new))));
        }
        Ok(())
    }
}

/// What is judged.
pub(super) struct Gate<'a> {
    pub config: &'a Config,
    pub staging: &'a Staging,
    pub references: &'a References,
    pub runner: Runner<'a>,
    /// The float32 heads.
    pub heads: &'a Graph,
    /// The staged language model, and where its weights lie; none where it is not judged.
    pub text: Option<(&'a Graph, &'a DataLayout)>,
}

impl Gate<'_> {
    /// Judges the parts that were written anew, and the chain; what `verdict` holds of the others stays.
    ///
    /// # Errors
    /// Those of the runtime and of reading scans.
    pub fn judge(&self, verdict: &mut Verdict, written: [bool; 4]) -> Result<()> {
        if written[ADAPTER] {
            self.judge_adapter(verdict)?;
        }
        if written[ADAPTER] || written[VISION] {
            self.judge_vision(verdict, written[VISION])?;
        }
        if written[TEXT] {
            self.judge_text(verdict)?;
        }
        self.judge_heads(verdict)
    }

    /// The adapter by itself; what it gives is kept.
    pub fn judge_adapter(&self, verdict: &mut Verdict) -> Result<()> {
        (verdict.parts[ADAPTER], verdict.maps) = (None, Vec::new());
        let mut session = None;
        for (i, scan) in self.references.scans.iter().enumerate().filter(|(_, s)| s.role.judges()) {
            let volume = inputs::scan(&self.config.volume, &scan.path)?;
            let map = one(self.opened(&mut session, ADAPTER)?.run(&[("volume", &volume)], &["adapter"])?);
            verdict.add(ADAPTER, &[(&map, &scan.adapter)])?;
            verdict.maps.push((i, map));
        }
        Ok(())
    }

    /// The vision transformer by itself, where it is new, and on the staged adapter's results.
    fn judge_vision(&self, verdict: &mut Verdict, new: bool) -> Result<()> {
        (verdict.chain, verdict.visions) = (None, Vec::new());
        if new {
            verdict.parts[VISION] = None;
        }
        let mut session = None;
        for (i, map) in std::mem::take(&mut verdict.maps) {
            let scan = &self.references.scans[i];
            let session = self.opened(&mut session, VISION)?;
            if new {
                let vision = one(session.run(&[("adapter", &scan.adapter)], &["vision"])?);
                verdict.add(VISION, &[(&vision, &scan.vision)])?;
            }
            let vision = one(session.run(&[("adapter", &map)], &["vision"])?);
            let comparison = compare(VISION, &vision, &scan.vision)?;
            verdict.chain = Some(verdict.chain.map_or(comparison, |c| c.worst(&comparison)));
            verdict.visions.push((i, vision));
            verdict.maps.push((i, map));
        }
        Ok(())
    }

    fn judge_text(&self, verdict: &mut Verdict) -> Result<()> {
        (verdict.parts[TEXT], verdict.texts) = (None, Vec::new());
        let judged = self.references.reports.iter().enumerate().filter(|(_, r)| r.role.judges());
        let feeds: Vec<Feed> = judged.clone().map(|(_, r)| r.tokens.clone()).collect();
        for ((i, report), text) in judged.zip(self.run_text(feeds)?) {
            verdict.add(TEXT, &[(&text, &report.text)])?;
            verdict.texts.push((i, text));
        }
        Ok(())
    }

    /// The staged language model's results: as a whole, or a large one block by block over its own staged weights, in the
    /// memory of one.
    fn run_text(&self, feeds: Vec<Feed>) -> Result<Vec<Tensor>> {
        if feeds.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.staging.path().join("text.onnx.data");
        let large = std::fs::metadata(&path).map_or(0, |m| m.len()) > WHOLE_BYTES;
        if let Some((graph, placed)) = self.text.filter(|_| large) {
            let runner = Runner { placed: Some(placed), ..self.runner };
            let mut inputs = Inputs::new(feeds.into_iter().map(|feed| (feed, Role::HeldOut)).collect(), 0);
            let none = |_: &Segment| false;
            let wanted = Wanted { ranges: false, blocks: &none };
            let results = walk(graph, &mut inputs, &wanted, &runner, &mut Silent, &mut |_, _| Ok(()))?;
            let take = |mut feed: Feed| feed.remove("text").map(Arc::unwrap_or_clone);
            let results: Option<Vec<Tensor>> = results.into_iter().flatten().map(take).collect();
            return results.ok_or_else(|| Error::new(Code::RUNTIME_RUN, "the language model gave no result"));
        }
        let mut session = self.open(PARTS[TEXT])?;
        let run = |feed: Feed| {
            let feed: Vec<(&str, &Tensor)> = feed.iter().map(|(n, t)| (n.as_str(), t.as_ref())).collect();
            session.run(&feed, &["text"]).map(one)
        };
        feeds.into_iter().map(run).collect()
    }

    /// The heads by themselves, and the probabilities at the end of the whole chain.
    pub fn judge_heads(&self, verdict: &mut Verdict) -> Result<()> {
        (verdict.parts[HEADS], verdict.probabilities) = (None, None);
        let find = |all: &[(usize, Tensor)], i: usize| all.iter().find(|(j, _)| *j == i).map(|(_, t)| t.clone());
        let mut cases: Vec<(&'static str, [Tensor; 2], [Tensor; 2])> = Vec::new();
        for (scan, report) in self.references.pairs() {
            let (Some(vision), Some(text)) = (find(&verdict.visions, scan), find(&verdict.texts, report)) else {
                continue;
            };
            let single = [&self.references.scans[scan].vision, &self.references.reports[report].text];
            cases.push(("logits", single.map(|t| t.as_ref().clone()), [vision, text]));
        }
        if self.heads.outputs.iter().any(|&id| self.heads.value(id).name == "image_logits") {
            // What the image says alone does not depend on the text: zeros stand in for it, as they do when it is run.
            let absent = || Tensor::F32(ndarray::ArrayD::zeros(vec![1, self.config.text.hidden]));
            for (scan, vision) in &verdict.visions {
                let single = self.references.scans[*scan].vision.as_ref().clone();
                cases.push(("image_logits", [single, absent()], [vision.clone(), absent()]));
            }
        }
        if cases.is_empty() {
            return Ok(());
        }
        let (mut single, mut staged) = (self.runner.open(self.heads)?, self.open(PARTS[HEADS])?);
        for (logits, [vision, text], [staged_vision, staged_text]) in cases {
            let outputs: &[&str] = if logits == "logits" { &["logits", "v", "t"] } else { &[logits] };
            let feed: Feed =
                [("vision", &vision), ("text", &text)].map(|(n, t)| (n.to_owned(), Arc::new(t.clone()))).into();
            let expected = single.run(&feed, outputs)?;
            let alone = staged.run(&[("vision", &vision), ("text", &text)], outputs)?;
            verdict.add(HEADS, &alone.iter().zip(&expected).collect::<Vec<_>>())?;
            let chain = one(staged.run(&[("vision", &staged_vision), ("text", &staged_text)], &[logits])?);
            let pairs = probabilities(&chain).into_iter().zip(probabilities(&expected[0]));
            let difference = pairs
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            verdict.probabilities = Some(verdict.probabilities.unwrap_or(0.0).max(difference));
        }
        Ok(())
    }

    /// The part's session, opened when it is first needed.
    fn opened<'s>(&self, session: &'s mut Option<Session>, part: usize) -> Result<&'s mut Session> {
        match session {
            Some(session) => Ok(session),
            None => Ok(session.insert(self.open(PARTS[part])?)),
        }
    }

    fn open(&self, part: &str) -> Result<Session> {
        let path = self.staging.path().join(format!("{part}.onnx"));
        let options = SessionOptions { threads: self.runner.threads, ..SessionOptions::default() };
        Session::open(self.runner.runtime, &path, &options)
    }
}

pub(super) fn compare(part: usize, found: &Tensor, expected: &Tensor) -> Result<Comparison> {
    let failed = |e: String| Error::new(Code::RUNTIME_RUN, format!("the graph `{}`: {e}", PARTS[part]));
    match (found, expected) {
        (Tensor::F32(found), Tensor::F32(expected)) => Comparison::of(found, expected).map_err(failed),
        _ => Err(failed("its outputs are not float32".into())),
    }
}

/// `1 - cosine`; infinite when a value is, or is no number.
fn distance(c: &Comparison) -> f64 {
    if c.max_rel.is_finite() && c.cosine.is_finite() { 1.0 - c.cosine } else { f64::INFINITY }
}

/// Softmax of the first row.
fn probabilities(logits: &Tensor) -> Vec<f64> {
    let logits = logits.as_f32().unwrap_or_default();
    softmax(logits, 1.0)
}

/// The only result of a run with one output.
pub(super) fn one(results: Vec<Tensor>) -> Tensor {
    results.into_iter().next().expect("a run gives one tensor an output")
}
