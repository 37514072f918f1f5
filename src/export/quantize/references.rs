//! The float32 results on the calibration inputs: the reference of every comparison.

use std::path::PathBuf;
use std::sync::Arc;

use crate::calibrate::{Feed, Role};
use crate::error::Result;
use crate::export::sources::Loaded;
use crate::export::{CalibrationInput, inputs};
use crate::tensor::Tensor;

/// A scan and its float32 results. The volume itself is read again when it is needed: it has 67 MB.
pub(in crate::export) struct ScanReference {
    pub name: String,
    pub path: PathBuf,
    pub role: Role,
    pub adapter: Arc<Tensor>,
    pub vision: Arc<Tensor>,
}

/// A report: its tokens and the float32 result.
pub(in crate::export) struct ReportReference {
    pub name: String,
    pub role: Role,
    pub tokens: Feed,
    pub text: Arc<Tensor>,
}

/// The float32 results of all calibration inputs.
#[derive(Default)]
pub(in crate::export) struct References {
    pub scans: Vec<ScanReference>,
    pub reports: Vec<ReportReference>,
}

impl References {
    /// How many scans and reports have a role for which `has` is true.
    pub fn count(&self, has: fn(Role) -> bool) -> (usize, usize) {
        let scans = self.scans.iter().filter(|s| has(s.role)).count();
        (scans, self.reports.iter().filter(|r| has(r.role)).count())
    }

    /// Held-out scans and reports (by index) that the heads are evaluated on together: those of one input, or the first
    /// of each where no held-out input has both.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let held_out = |role: Role| role.evaluates();
        let scans = || self.scans.iter().enumerate().filter(|(_, s)| held_out(s.role));
        let reports = || self.reports.iter().enumerate().filter(|(_, r)| held_out(r.role));
        let same: Vec<(usize, usize)> =
            scans().filter_map(|(i, s)| reports().find(|(_, r)| r.name == s.name).map(|(j, _)| (i, j))).collect();
        if same.is_empty() { scans().map(|(i, _)| i).zip(reports().map(|(j, _)| j)).collect() } else { same }
    }
}

/// A placeholder for a result that is not there yet.
pub(super) fn empty() -> Arc<Tensor> {
    Arc::new(Tensor::F32(ndarray::ArrayD::zeros(vec![0])))
}

/// The scans, with the roles that they will have.
pub(super) fn scans(all: &[CalibrationInput]) -> Vec<(String, PathBuf, Role)> {
    let found: Vec<_> = all.iter().filter_map(|i| Some((i.name.clone(), i.scan.clone()?))).collect();
    let roles = Role::of(found.len());
    found.into_iter().zip(roles).map(|((name, path), role)| (name, path, role)).collect()
}

/// The reports as tokens, with the roles that they will have.
pub(super) fn reports(loaded: &Loaded, all: &[CalibrationInput]) -> Result<Vec<(String, Feed, Role)>> {
    let found: Vec<_> = all.iter().filter_map(|i| Some((i.name.clone(), i.report.clone()?))).collect();
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let tokenizer = loaded.tokenizer.load()?;
    let roles = Role::of(found.len());
    let read = |((name, path), role): ((String, PathBuf), Role)| {
        let [ids, mask] = inputs::report(loaded.config.text.max_tokens, &tokenizer, &path)?;
        let tokens = [("input_ids", ids), ("attention_mask", mask)];
        Ok((name, tokens.map(|(n, t)| (n.to_owned(), Arc::new(t))).into(), role))
    };
    found.into_iter().zip(roles).map(read).collect()
}
