//! Reports: tokens, the language model, and encoding a report and a scan concurrently.

use super::encoded_report::EncodedReport;
use super::prediction::Prediction;
use super::predictor::{Predictor, only};
use super::scan::Scan;
use crate::batch;
use crate::error::{Code, Error, Result, Warning};
use crate::execute::Timing;
use crate::execute::cache::features::Features;
use crate::model::Part;
use crate::tensor::Tensor;
use crate::text::{Tokens, report_warnings};
use crate::threads;

/// A report that the language model has yet to encode.
struct PendingReport {
    key: Option<String>,
    /// Number of tokens.
    tokens: usize,
    warnings: Vec<Warning>,
    inputs: [Tensor; 2],
}

/// What the feature cache knows of a report.
enum Lookup {
    Hit(EncodedReport),
    Miss(PendingReport),
}

impl Predictor {
    /// Tokenizes a report and runs the language model on it, or takes its features from the cache. The text is used as
    /// it is: one that comes from elsewhere than [`crate::text::read_report`] should go through
    /// [`crate::text::decode_report`] first.
    ///
    /// # Errors
    /// `tokenizer.invalid`, `bundle.checksum`, `bundle.replaced`, `device.memory` or `runtime.*`.
    pub fn encode_report(&self, report: &str) -> Result<EncodedReport> {
        match self.lookup(report)? {
            Lookup::Hit(report) => Ok(report),
            Lookup::Miss(pending) => self.encode(pending),
        }
    }

    /// Classifies a scan with its report, both encoded concurrently where device and memory allow: the language model
    /// then runs on a thread of its own while `scan` is waited for and goes through the image's graphs. Elsewhere the
    /// report comes first.
    ///
    /// A report in `encoded` is used as it is; one that is encoded now is left there, also when the scan fails. Of two
    /// errors the report's is returned.
    ///
    /// # Errors
    /// Those of [`Self::encode_report`], of `scan` and of [`Self::predict`].
    pub fn predict_with_report(
        &self,
        report: &str,
        encoded: &mut Option<EncodedReport>,
        scan: impl FnOnce() -> Result<Scan>,
    ) -> Result<Prediction> {
        if encoded.is_none() {
            match self.lookup(report)? {
                Lookup::Hit(report) => *encoded = Some(report),
                Lookup::Miss(pending) if self.pipeline().runs_concurrently() => {
                    return self.run_concurrently(pending, encoded, scan);
                }
                Lookup::Miss(pending) => *encoded = Some(self.encode(pending)?),
            }
        }
        self.predict(scan()?, encoded.as_ref())
    }

    /// The language model on another thread, the image on this one.
    fn run_concurrently(
        &self,
        pending: PendingReport,
        encoded: &mut Option<EncodedReport>,
        scan: impl FnOnce() -> Result<Scan>,
    ) -> Result<Prediction> {
        let inputs = &pending.inputs;
        let (text, scan) = std::thread::scope(|scope| {
            let thread = threads::spawn_scoped(scope, "text", move || self.run_text(inputs))?;
            let scan = scan().and_then(|scan| self.encode_scan(scan));
            let panicked = |_| Err(Error::internal("text: the language model's thread panicked"));
            Ok((thread.join().unwrap_or_else(panicked), scan))
        })?;
        let (text, timing) = match text {
            Ok(text) => text,
            Err(report) => return Err(more_severe(report, scan.err())),
        };
        *encoded = Some(self.finish(pending, text, timing)?);
        self.classify(scan?, encoded.as_ref())
    }

    /// The report's features from the cache, or what is to be encoded.
    fn lookup(&self, report: &str) -> Result<Lookup> {
        let key = self.store().map(|store| store.report_key(report));
        let known = self.store().zip(key.as_ref()).filter(|_| !self.keeps_tensors());
        if let Some(Features { tensor, warnings, tokens, .. }) = known.and_then(|(store, key)| store.get(key)) {
            let timing = Timing::default();
            return Ok(Lookup::Hit(EncodedReport {
                text: tensor,
                inputs: None,
                tokens,
                cached: true,
                warnings,
                timing,
            }));
        }
        let tokens = self.tokenize(report)?;
        let warnings = report_warnings(report, &tokens, self.bundle().manifest.tokenizer.reports.as_ref());
        let inputs = batch::report(&tokens);
        Ok(Lookup::Miss(PendingReport { key, tokens: tokens.ids.len(), warnings, inputs }))
    }

    fn encode(&self, pending: PendingReport) -> Result<EncodedReport> {
        let (text, timing) = self.run_text(&pending.inputs)?;
        self.finish(pending, text, timing)
    }

    /// The language model: `text` f32 `[1, text.hidden]`.
    fn run_text(&self, [ids, mask]: &[Tensor; 2]) -> Result<(Tensor, Timing)> {
        let mut timing = Timing::default();
        let feed = [("input_ids", ids), ("attention_mask", mask)];
        let text = self.pipeline().run(Part::Text, &feed, &["text"], &mut timing)?;
        Ok((only(text, Part::Text)?, timing))
    }

    /// An encoded report, once the language model's weights are verified; its features go into the cache.
    fn finish(&self, pending: PendingReport, text: Tensor, mut timing: Timing) -> Result<EncodedReport> {
        let PendingReport { key, tokens, warnings, inputs } = pending;
        self.pipeline().verify(&[Part::Text], &mut timing)?;
        if let (Some(store), Some(key)) = (self.store(), &key) {
            store.put(key, &Features { tensor: text.clone(), warnings: warnings.clone(), tokens, quality: None })?;
        }
        let inputs = self.keeps_tensors().then_some(inputs);
        Ok(EncodedReport { text, inputs, tokens, cached: false, warnings, timing })
    }

    fn tokenize(&self, report: &str) -> Result<Tokens> {
        let manifest = &self.bundle().manifest;
        let tokens = self.tokenizer()?.encode(report, manifest.tokenizer.max_tokens)?;
        let vocab = manifest.text_model.vocab as i64;
        if let Some(id) = tokens.ids.iter().find(|id| **id >= vocab) {
            let message = format!("the report gives token {id}, the language model's vocabulary has {vocab}");
            let file = self.bundle().file(&manifest.tokenizer.file)?;
            return Err(Error::new(Code::TOKENIZER_INVALID, message).at(file));
        }
        Ok(tokens)
    }
}

/// Of two errors the report's, unless the scan's is one of the bundle, which no other input avoids.
fn more_severe(report: Error, scan: Option<Error>) -> Error {
    let bundle = |e: &Error| [Code::BUNDLE_CHECKSUM, Code::BUNDLE_CHANGED, Code::BUNDLE_REPLACED].contains(&e.code());
    scan.filter(bundle).unwrap_or(report)
}
