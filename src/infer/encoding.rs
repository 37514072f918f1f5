//! Reports: tokens, the language model, and reading a report and a scan at once.

use std::time::Instant;

use super::prediction::Prediction;
use super::predictor::{Predictor, one};
use super::reader::Scan;
use crate::batch;
use crate::error::{Code, Error, Result, Warning};
use crate::execute::Timing;
use crate::execute::cache::features::Features;
use crate::model::Part;
use crate::tensor::Tensor;
use crate::text::{Tokenizer, Tokens};

/// A report, read by the language model.
#[derive(Clone, Debug)]
pub struct EncodedReport {
    /// `text` f32 `[1, text.hidden]`.
    pub(super) text: Tensor,
    /// `input_ids` and `attention_mask`, where tensors are kept.
    pub(super) inputs: Option<[Tensor; 2]>,
    /// Number of tokens read.
    pub tokens: usize,
    pub(super) cached: bool,
    pub(super) warnings: Vec<Warning>,
    pub(super) timing: Timing,
}

impl EncodedReport {
    /// What the language model made of it: `text` f32 `[1, text.hidden]`.
    pub fn features(&self) -> &Tensor {
        &self.text
    }

    /// What is to be known of the reading.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// A report that the language model is to read.
struct Waiting {
    key: Option<String>,
    tokens: Tokens,
    inputs: [Tensor; 2],
    timing: Timing,
}

/// What the language model gave on a thread of its own.
struct Ran {
    outcome: Result<Vec<Tensor>>,
    timing: Timing,
    began: Option<Instant>,
}

impl Predictor {
    /// Tokenizes a report and runs the language model on it, or finds what it made of it in the cache.
    ///
    /// # Errors
    /// `tokenizer.invalid`, `bundle.checksum`, `bundle.replaced`, `device.memory` or `runtime.*`.
    pub fn encode_report(&mut self, report: &str) -> Result<EncodedReport> {
        match self.look_up(report)? {
            Ok(known) => Ok(known),
            Err(waiting) => self.encode(waiting),
        }
    }

    /// Classifies a scan with its report, both read at once where the device and its memory allow: the language model then runs on
    /// a thread of its own while `scan` is waited for and goes through the image's graphs. Elsewhere the report comes first.
    ///
    /// A report in `encoded` is taken as it is; one that was read now is left there, also when the scan fails. Of two errors the
    /// report's is told.
    ///
    /// # Errors
    /// Those of [`Self::encode_report`], of `scan` and of [`Self::predict`].
    pub fn predict_both(
        &mut self,
        report: &str,
        encoded: &mut Option<EncodedReport>,
        scan: impl FnOnce() -> Result<Scan>,
    ) -> Result<Prediction> {
        if encoded.is_none() {
            match self.look_up(report)? {
                Ok(known) => *encoded = Some(known),
                Err(waiting) if self.together => return self.at_once(waiting, encoded, scan),
                Err(waiting) => *encoded = Some(self.encode(waiting)?),
            }
        }
        self.predict(scan()?, encoded.as_ref())
    }

    /// The language model on another thread, the image on this one.
    fn at_once(
        &mut self,
        waiting: Waiting,
        encoded: &mut Option<EncodedReport>,
        scan: impl FnOnce() -> Result<Scan>,
    ) -> Result<Prediction> {
        let mut timing = waiting.timing.clone();
        self.prepare(Part::Text, &mut timing)?;
        let mut stage = self.take_stage(Part::Text)?;
        let inputs = &waiting.inputs;
        let (ran, seen) = std::thread::scope(|scope| {
            let stage = &mut stage;
            let thread = scope.spawn(move || {
                let mut began = None;
                let outcome = stage.run(&feed(inputs), &["text"], &mut timing, &mut || {
                    began.get_or_insert_with(Instant::now);
                });
                Ran { outcome, timing, began }
            });
            let seen = scan().and_then(|scan| self.look(scan));
            (thread.join(), seen)
        });
        let opened = ran.as_ref().is_ok_and(|ran| ran.outcome.is_ok()) && stage.take_opened();
        self.stages.insert(Part::Text, stage);
        let Ok(Ran { outcome, timing, began }) = ran else {
            return Err(Error::new(Code::RUNTIME_RUN, "reading the report stopped unexpectedly").at(&self.bundle.dir));
        };
        if let Some(began) = began {
            self.begins(began);
        }
        let text = match outcome {
            Ok(results) => one(results),
            Err(report) => return Err(graver(report, seen.err())),
        };
        if opened {
            self.bundle.still_here()?;
        }
        *encoded = Some(self.encoded(waiting, text, timing)?);
        self.answer(seen?, encoded.as_ref())
    }

    /// The report as it was encoded before, or what is to be encoded.
    fn look_up(&mut self, report: &str) -> Result<std::result::Result<EncodedReport, Waiting>> {
        let key = self.store.as_ref().map(|store| store.report_key(report));
        let known = self.store.as_ref().zip(key.as_ref()).filter(|_| !self.options.keep_tensors);
        let timing = Timing::default();
        if let Some(Features { tensor, warnings, tokens }) = known.and_then(|(store, key)| store.get(key)) {
            return Ok(Ok(EncodedReport { text: tensor, inputs: None, tokens, cached: true, warnings, timing }));
        }
        let tokens = self.tokenize(report)?;
        let inputs = batch::report(&tokens);
        Ok(Err(Waiting { key, tokens, inputs, timing }))
    }

    fn encode(&mut self, mut waiting: Waiting) -> Result<EncodedReport> {
        let mut timing = std::mem::take(&mut waiting.timing);
        let text = one(self.run(Part::Text, &feed(&waiting.inputs), &["text"], &mut timing)?);
        self.encoded(waiting, text, timing)
    }

    /// What the language model made of a report: told and stored once its weights are verified.
    fn encoded(&mut self, waiting: Waiting, text: Tensor, mut timing: Timing) -> Result<EncodedReport> {
        let Waiting { key, tokens, inputs, .. } = waiting;
        self.verified(&[Part::Text], &mut timing)?;
        let warnings: Vec<Warning> = tokens.warning().into_iter().collect();
        let tokens = tokens.ids.len();
        if let (Some(store), Some(key)) = (&self.store, &key) {
            store.put(key, &Features { tensor: text.clone(), warnings: warnings.clone(), tokens })?;
        }
        let inputs = self.options.keep_tensors.then_some(inputs);
        Ok(EncodedReport { text, inputs, tokens, cached: false, warnings, timing })
    }

    fn tokenize(&mut self, report: &str) -> Result<Tokens> {
        let record = &self.bundle.manifest.tokenizer;
        let tokenizer = match &mut self.tokenizer {
            Some(tokenizer) => tokenizer,
            slot => {
                let tokenizer = Tokenizer::load(&self.bundle.file(&record.file), record.bos)?;
                self.bundle.still_here()?;
                slot.insert(tokenizer)
            }
        };
        let tokens = tokenizer.encode(report, record.max_tokens)?;
        let rows = self.bundle.manifest.text_model.vocab as i64;
        if let Some(id) = tokens.ids.iter().find(|id| **id >= rows) {
            let message = format!("the report gives token {id}, and the language model knows {rows}");
            return Err(Error::new(Code::TOKENIZER_INVALID, message).at(self.bundle.file(&record.file)));
        }
        Ok(tokens)
    }
}

/// Of two errors the report's, unless the other is the bundle's, with which there is no going on.
fn graver(report: Error, scan: Option<Error>) -> Error {
    let bundle = |e: &Error| [Code::BUNDLE_CHECKSUM, Code::BUNDLE_REPLACED].contains(&e.code());
    scan.filter(bundle).unwrap_or(report)
}

fn feed(inputs: &[Tensor; 2]) -> [(&'static str, &Tensor); 2] {
    [("input_ids", &inputs[0]), ("attention_mask", &inputs[1])]
}
