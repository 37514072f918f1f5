//! The gate of a quantized bundle: the staged graphs, as they will be run, against float32 on held-out inputs.
//!
//! Each part is compared by itself, on the float32 results of the part before, and the chain of all parts by its
//! probabilities: from scan and report, and from the scan alone where the model has an image-only classifier.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::inputs;
use super::quantize::limits::Limits;
use super::quantize::references::References;
use crate::bundle::Staging;
use crate::calibrate::{Feed, Inputs, Role, Runner, Walk};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Segment};
use crate::metrics::softmax;
use crate::model::{Part, PartMap};
use crate::onnx::DataLayout;
use crate::progress::Silent;
use crate::runtime::{Session, SessionOptions};
use crate::tensor::{Comparison, Tensor};

/// Bytes of a language model's weights beyond which it is run block by block.
const WHOLE_BYTES: u64 = 512 << 20;

/// What was measured, and the results of the staged parts, which the next parts are run on.
#[derive(Default)]
pub(super) struct Verdict {
    /// For each part the number of inputs and the worst of them.
    pub parts: PartMap<Option<(usize, Comparison)>>,
    /// Largest difference of a probability.
    pub probabilities: Option<f64>,
    /// The vision transformer on the staged adapter's results, against float32 throughout.
    pub chain: Option<Comparison>,
    /// Results of the staged adapter, and of the staged vision transformer on them, by scan; those of the staged
    /// language model by report.
    pub maps: Vec<(usize, Tensor)>,
    pub visions: Vec<(usize, Tensor)>,
    pub texts: Vec<(usize, Tensor)>,
}

impl Verdict {
    /// Parts that miss what they aim at, with how many times their distance must shrink.
    pub fn failing(&self, limits: &PartMap<Limits>) -> Vec<(Part, f64)> {
        let shortfall = |part: Part| {
            let (inputs, comparison) = self.parts[part].as_ref()?;
            let (limits, distance) = (limits[part], distance(comparison));
            Some(match part {
                // Quantized as a whole or not at all: they need no safety margin.
                Part::Adapter | Part::Heads => limits.excess(distance),
                Part::Vision | Part::Text => limits.shortfall(distance, *inputs),
            })
        };
        let mut failing: Vec<(Part, f64)> =
            Part::ALL.into_iter().filter_map(|part| Some((part, shortfall(part)?)).filter(|(_, s)| *s > 1.0)).collect();
        let far = self.probabilities.map_or(0.0, |p| p / limits[Part::Heads].probability);
        if failing.is_empty() && far > 1.0 {
            failing.push((self.blamed(), far * far));
        }
        failing
    }

    /// The part that moves the probabilities most: the adapter where it makes the vision transformer's result clearly
    /// worse, else vision or text by their own distance.
    fn blamed(&self) -> Part {
        let of = |part: Part| self.parts[part].as_ref().map_or(0.0, |(_, c)| distance(c));
        let (vision, text) = (of(Part::Vision), of(Part::Text));
        match self.chain.as_ref().map(distance) {
            Some(chain) if chain > 2.0 * vision && chain > text => Part::Adapter,
            _ if vision > text => Part::Vision,
            _ => Part::Text,
        }
    }

    /// The first limit that is missed, as an error.
    pub fn error(&self, limits: &PartMap<Limits>) -> Option<Error> {
        let remedy = "calibrate on more inputs, lower --max-error, or choose another precision";
        self.missed(limits).map(|missed| Error::new(Code::QUANTIZE_ERROR, format!("{missed}: {remedy}")))
    }

    /// The first limit that is missed, in words.
    pub fn missed(&self, limits: &PartMap<Limits>) -> Option<String> {
        for (part, found) in self.parts.iter() {
            let Some((_, c)) = found else { continue };
            let least = limits[part].cosine;
            if distance(c) > 1.0 - least {
                let found = c.cosine;
                return Some(format!("the graph `{part}` has cosine {found:.6} to fp32, expected at least {least}"));
            }
        }
        let most = limits[Part::Heads].probability;
        let far = self.probabilities.filter(|p| *p > most)?;
        Some(format!("a probability differs by {far:.3} from fp32, allowed are {most}"))
    }

    /// Adds one input's results of a part.
    fn add(&mut self, part: Part, pairs: &[(&Tensor, &Tensor)]) -> Result<()> {
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

/// What the staged graphs are compared with, and how they are run.
pub(super) struct Gate<'a> {
    pub config: &'a Config,
    pub staging: &'a Staging,
    pub references: &'a References,
    pub runner: Runner<'a>,
    /// The float32 heads.
    pub heads: &'a Graph,
    /// The staged language model, and where its weights lie; `None` where it is not compared.
    pub text: Option<(&'a Graph, &'a DataLayout)>,
}

impl Gate<'_> {
    /// Compares the parts that were written again, and the chain; `verdict` keeps its values for the others.
    ///
    /// # Errors
    /// Those of the runtime and of reading scans.
    pub fn check(&self, verdict: &mut Verdict, written: &BTreeSet<Part>) -> Result<()> {
        let new = |part: Part| written.contains(&part);
        if new(Part::Adapter) {
            self.check_adapter(verdict)?;
        }
        if new(Part::Adapter) || new(Part::Vision) {
            self.check_vision(verdict, new(Part::Vision))?;
        }
        if new(Part::Text) {
            self.check_text(verdict)?;
        }
        self.check_heads(verdict)
    }

    /// The adapter by itself; its results are kept.
    pub fn check_adapter(&self, verdict: &mut Verdict) -> Result<()> {
        (verdict.parts[Part::Adapter], verdict.maps) = (None, Vec::new());
        let mut session = None;
        for (i, scan) in self.references.scans.iter().enumerate().filter(|(_, s)| s.role.evaluates()) {
            let volume = inputs::scan(&self.config.volume, &scan.path)?;
            let map = only(self.opened(&mut session, Part::Adapter)?.run(&[("volume", &volume)], &["adapter"])?);
            verdict.add(Part::Adapter, &[(&map, &scan.adapter)])?;
            verdict.maps.push((i, map));
        }
        Ok(())
    }

    /// The vision transformer by itself, where it is new, and on the staged adapter's results.
    fn check_vision(&self, verdict: &mut Verdict, new: bool) -> Result<()> {
        (verdict.chain, verdict.visions) = (None, Vec::new());
        if new {
            verdict.parts[Part::Vision] = None;
        }
        let mut session = None;
        for (i, map) in std::mem::take(&mut verdict.maps) {
            let scan = &self.references.scans[i];
            let session = self.opened(&mut session, Part::Vision)?;
            if new {
                let vision = only(session.run(&[("adapter", &scan.adapter)], &["vision"])?);
                verdict.add(Part::Vision, &[(&vision, &scan.vision)])?;
            }
            let vision = only(session.run(&[("adapter", &map)], &["vision"])?);
            let comparison = compare(Part::Vision, &vision, &scan.vision)?;
            verdict.chain = Some(verdict.chain.map_or(comparison, |c| c.worst(&comparison)));
            verdict.visions.push((i, vision));
            verdict.maps.push((i, map));
        }
        Ok(())
    }

    fn check_text(&self, verdict: &mut Verdict) -> Result<()> {
        (verdict.parts[Part::Text], verdict.texts) = (None, Vec::new());
        let held_out = self.references.reports.iter().enumerate().filter(|(_, r)| r.role.evaluates());
        let feeds: Vec<Feed> = held_out.clone().map(|(_, r)| r.tokens.clone()).collect();
        for ((i, report), text) in held_out.zip(self.run_text(feeds)?) {
            verdict.add(Part::Text, &[(&text, &report.text)])?;
            verdict.texts.push((i, text));
        }
        Ok(())
    }

    /// The staged language model's results: as a whole, or a large one block by block over its own staged weights, in
    /// the memory of one.
    fn run_text(&self, feeds: Vec<Feed>) -> Result<Vec<Tensor>> {
        if feeds.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.staging.path().join("text.onnx.data");
        let large = std::fs::metadata(&path).map_or(0, |m| m.len()) > WHOLE_BYTES;
        if let Some((graph, layout)) = self.text.filter(|_| large) {
            let runner = Runner { layout: Some(layout), ..self.runner };
            let mut inputs = Inputs::new(feeds.into_iter().map(|feed| (feed, Role::HeldOut)).collect(), 0);
            let none = |_: &Segment| false;
            let walk = Walk { graph, runner: &runner, visits: &none, ranges: false };
            let results = walk.run(&mut inputs, &mut Silent, &mut |_, _| Ok(()))?;
            let output = |mut feed: Feed| feed.remove("text").map(Arc::unwrap_or_clone);
            let results: Option<Vec<Tensor>> = results.into_iter().flatten().map(output).collect();
            return results.ok_or_else(|| Error::internal("text: output missing"));
        }
        let mut session = self.open(Part::Text)?;
        let run = |feed: Feed| {
            let feed: Vec<(&str, &Tensor)> = feed.iter().map(|(n, t)| (n.as_str(), t.as_ref())).collect();
            session.run(&feed, &["text"]).map(only)
        };
        feeds.into_iter().map(run).collect()
    }

    /// The heads by themselves, and the probabilities at the end of the whole chain.
    pub fn check_heads(&self, verdict: &mut Verdict) -> Result<()> {
        (verdict.parts[Part::Heads], verdict.probabilities) = (None, None);
        let find = |all: &[(usize, Tensor)], i: usize| all.iter().find(|(j, _)| *j == i).map(|(_, t)| t.clone());
        let mut cases: Vec<(&'static str, [Tensor; 2], [Tensor; 2])> = Vec::new();
        for (scan, report) in self.references.pairs() {
            let (Some(vision), Some(text)) = (find(&verdict.visions, scan), find(&verdict.texts, report)) else {
                continue;
            };
            let fp32 = [&self.references.scans[scan].vision, &self.references.reports[report].text];
            cases.push(("logits", fp32.map(|t| t.as_ref().clone()), [vision, text]));
        }
        if self.heads.outputs.iter().any(|&id| self.heads.value(id).name == "image_logits") {
            // The image-only logits do not depend on the text: its input is zeros, as in inference.
            let absent = || Tensor::F32(ndarray::ArrayD::zeros(vec![1, self.config.text.hidden]));
            for (scan, vision) in &verdict.visions {
                let fp32 = self.references.scans[*scan].vision.as_ref().clone();
                cases.push(("image_logits", [fp32, absent()], [vision.clone(), absent()]));
            }
        }
        if cases.is_empty() {
            return Ok(());
        }
        let (mut fp32, mut staged) = (self.runner.open(self.heads)?, self.open(Part::Heads)?);
        for (logits, [vision, text], [staged_vision, staged_text]) in cases {
            let outputs: &[&str] = if logits == "logits" { &["logits", "v", "t"] } else { &[logits] };
            let feed: Feed =
                [("vision", &vision), ("text", &text)].map(|(n, t)| (n.to_owned(), Arc::new(t.clone()))).into();
            let expected = fp32.run(&feed, outputs)?;
            let alone = staged.run(&[("vision", &vision), ("text", &text)], outputs)?;
            verdict.add(Part::Heads, &alone.iter().zip(&expected).collect::<Vec<_>>())?;
            let chain = only(staged.run(&[("vision", &staged_vision), ("text", &staged_text)], &[logits])?);
            let pairs = probabilities(&chain).into_iter().zip(probabilities(&expected[0]));
            let difference = pairs
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            verdict.probabilities = Some(verdict.probabilities.unwrap_or(0.0).max(difference));
        }
        Ok(())
    }

    /// The part's session, opened when it is first needed.
    fn opened<'s>(&self, session: &'s mut Option<Session>, part: Part) -> Result<&'s mut Session> {
        match session {
            Some(session) => Ok(session),
            None => Ok(session.insert(self.open(part)?)),
        }
    }

    fn open(&self, part: Part) -> Result<Session> {
        let path = self.staging.path().join(format!("{part}.onnx"));
        let options = SessionOptions { threads: self.runner.threads, ..SessionOptions::default() };
        Session::open(self.runner.runtime, &path, &options)
    }
}

pub(super) fn compare(part: Part, found: &Tensor, expected: &Tensor) -> Result<Comparison> {
    let failed = |e: String| Error::internal(format!("the graph `{part}`: {e}"));
    match (found, expected) {
        (Tensor::F32(found), Tensor::F32(expected)) => Comparison::of(found, expected).map_err(failed),
        _ => Err(failed("its outputs are not float32".into())),
    }
}

/// `1 - cosine`; infinite when a value is infinite or not a number.
fn distance(c: &Comparison) -> f64 {
    if c.max_rel.is_finite() && c.cosine.is_finite() { 1.0 - c.cosine } else { f64::INFINITY }
}

/// Softmax of the first row.
fn probabilities(logits: &Tensor) -> Vec<f64> {
    let logits = logits.as_f32().unwrap_or_default();
    softmax(logits, 1.0)
}

/// The result of a run with one output.
pub(super) fn only(results: Vec<Tensor>) -> Tensor {
    results.into_iter().next().expect("a run returns one tensor per output")
}
