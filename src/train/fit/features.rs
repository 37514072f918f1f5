//! Features that are computed once: of reports, and of scans where the adapter is frozen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cases::Cases;
use super::scans::{ScanName, Scans};
use super::{Plan, threads};
use crate::batch;
use crate::config::Config;
use crate::error::{Code, Error, Result, Warning, WarningTally};
use crate::execute::cache::features::{Features, Store};
use crate::infer::{Expected, Options, Predictor};
use crate::progress::Progress;
use crate::runtime::{Device, Runtime};
use crate::tensor::Tensor;
use crate::text::read_report;
use crate::train::artifacts::Artifacts;
use crate::train::staged_model::{Parameters, StagedModel};
use crate::volume::ReadOptions;

/// Features of reports.
#[derive(Default)]
pub(super) struct ReportFeatures {
    by_path: BTreeMap<PathBuf, Tensor>,
    /// SHA-256 of the bundle whose language model computed them.
    pub bundle: String,
}

impl ReportFeatures {
    /// f32 `[1, text.hidden]` of a report.
    pub fn get(&self, path: Option<&PathBuf>) -> Option<&Tensor> {
        self.by_path.get(path?)
    }
}

/// Encodes every report with the bundle's language model.
pub(super) fn of_reports(
    plan: &Plan,
    config: &Config,
    cases: &Cases,
    progress: &mut dyn Progress,
) -> Result<ReportFeatures> {
    let mut paths: Vec<&PathBuf> = cases.all().filter_map(|s| s.report.as_ref()).collect();
    paths.sort();
    paths.dedup();
    progress.step("encoding reports", None);
    let options = Options {
        device: Device::Cpu,
        threads: plan.threads,
        library: plan.library.clone(),
        expected: Expected { scans: 0, reports: paths.len() },
        cache: Some(cache_folder(plan)),
        ..Options::default()
    };
    let predictor = Predictor::open(&plan.bundle, options)?;
    let theirs = &predictor.bundle().manifest;
    if theirs.config.text != config.text {
        let message = "the bundle's language model has another configuration than the training artifacts";
        return Err(Error::new(Code::CONFIG_CONTRADICTION, message).at(&plan.bundle));
    }
    let bundle = theirs.model_sha256()?;
    let (mut by_path, mut tally) = (BTreeMap::new(), WarningTally::default());
    for (i, path) in paths.iter().enumerate() {
        progress.item("report", i, paths.len());
        let encoded = predictor.encode_report(&read_report(path)?).map_err(|e| e.at(*path))?;
        if plan.strict_quality {
            Warning::refuse_quality(encoded.warnings()).map_err(|e| e.at(*path))?;
        }
        tally.add(path, encoded.warnings());
        by_path.insert((*path).clone(), encoded.features().clone());
    }
    tally.warnings("reports").iter().for_each(|warning| progress.warn(warning));
    Ok(ReportFeatures { by_path, bundle })
}

/// The folder of cached features.
fn cache_folder(plan: &Plan) -> PathBuf {
    plan.cache.clone().unwrap_or_else(|| plan.output().join("cache"))
}

/// The store of scans' vision features. Its key has everything that their bits depend on: activations that are saved
/// decide which nodes are fused, threads the order of sums.
pub(super) fn store(plan: &Plan, artifacts: &Artifacts, runtime: &Runtime) -> Result<Store> {
    let (tool, how) = (env!("CARGO_PKG_VERSION"), format!("{:?}, {} threads", plan.activations, threads(plan)));
    Store::open(&cache_folder(plan), &["training", &artifacts.sha256, tool, runtime.build, &how])
}

/// `vision` f32 `[1, vision.hidden]` of each case's scan with the current parameters: from `store`, else computed and
/// stored.
pub(super) fn of_scans(
    store: &Store,
    scans: &Scans,
    cases: &Cases,
    model: &mut StagedModel,
    parameters: &Parameters,
    progress: &mut dyn Progress,
) -> Result<BTreeMap<ScanName, Tensor>> {
    let all: Vec<(&Path, Option<usize>)> = cases.all().map(|s| (s.scan.as_path(), s.volume)).collect();
    progress.step("vision features", None);
    let (mut found, mut tally) = (BTreeMap::new(), WarningTally::default());
    for (i, (path, volume)) in all.iter().copied().enumerate() {
        progress.item("scan", i, all.len());
        let name = (path.to_path_buf(), volume);
        if found.contains_key(&name) {
            continue;
        }
        let options = ReadOptions { volume, ..ReadOptions::default() };
        let key = store.scan_key(&crate::volume::files(path)?, &options)?;
        let features = match store.get(&key) {
            Some(features) => features,
            None => {
                let scan = scans.volume(path, volume)?;
                let (warnings, quality) = (scan.warnings.clone(), Some(scan.quality.clone()));
                let tensor = model.features(parameters, &batch::volume(scan))?;
                let features = Features { tensor, warnings, tokens: 0, quality };
                store.put(&key, &features)?;
                features
            }
        };
        scans.check(path, &features.warnings)?;
        tally.add(path, &features.warnings);
        found.insert(name, features.tensor);
    }
    tally.warnings("scans").iter().for_each(|warning| progress.warn(warning));
    Ok(found)
}
