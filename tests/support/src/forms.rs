//! Bundles in every form, made of the committed fixtures, and what is looked up in them.

#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::model::Part;
use brain_adapter::progress::Silent;
use serde_json::Value;

use crate::commands::{fixture, scan, write_model};
use crate::oracle;

/// A fixture, and the one whose towers it has.
pub const FIXTURES: [(&str, &str); 3] =
    [("tiny", "tiny"), ("tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded"), ("tiny-bottleneck3d", "tiny")];

/// The parts, in the order in which they run.
pub const PARTS: [&str; 4] = brain_adapter::model::PARTS;

/// A fixture as a model folder `model` and calibration inputs `calibration` in `dir`.
pub fn write(dir: &Path, (name, towers): (&str, &str)) {
    let calibration = dir.join("calibration");
    write_model(&dir.join("model"), name, towers);
    fs::create_dir(&calibration).unwrap();
    fs::copy(scan(), calibration.join("report0.nii.gz")).unwrap();
    let reports: Vec<String> = serde_json::from_slice(&fs::read(fixture(name).join("reports.json")).unwrap()).unwrap();
    for (i, report) in reports.iter().enumerate() {
        fs::write(calibration.join(format!("report{i}.txt")), report).unwrap();
    }
}

/// An export of the model folder in `dir`, into `dir/PRECISION-TARGET`.
pub fn plan(dir: &Path, precision: Precision, target: Target) -> Plan {
    let output = dir.join(format!("{precision}-{target}"));
    Plan {
        precision,
        target,
        calibration: Some(dir.join("calibration")),
        ..Plan::new(Sources::in_folder(&dir.join("model")).unwrap(), output)
    }
}

/// The verified bundle that [`plan`] gives.
pub fn export(dir: &Path, precision: Precision, target: Target) -> Bundle {
    let plan = plan(dir, precision, target);
    export::run(&plan, &mut Silent).unwrap_or_else(|e| panic!("{precision} for {target}: {e}"));
    Bundle::open(&plan.output).unwrap()
}

/// The graph files of a bundle for a provider, by part.
pub fn graphs(bundle: &Bundle, provider: &str) -> Vec<(&'static str, PathBuf)> {
    let path = |part| bundle.file(bundle.manifest.graph(part, provider).unwrap_or_else(|| panic!("no {part}")));
    Part::ALL.map(|part| (part.as_str(), path(part))).into()
}

/// The nodes of the files as the onnx package reads them (`onnx_nodes.py`), an object a file; none where Python is skipped.
pub fn nodes(files: &[PathBuf]) -> Option<Vec<Value>> {
    let report = oracle::run_python("the nodes that the onnx package reads", "tests/scripts/onnx_nodes.py", files)?;
    let mut all: Value = serde_json::from_slice(&report).unwrap();
    Some(files.iter().map(|file| all[file.to_str().unwrap()].take()).collect())
}
