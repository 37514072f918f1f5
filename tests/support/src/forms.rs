//! Bundles in every form, made of the committed fixtures, and the nodes of their graphs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::model::Part;
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use serde_json::Value;

use crate::commands::{fixture, scan, write_model};
use crate::common::runtime;
use crate::oracle;

/// A committed model.
#[derive(Clone, Copy, Debug)]
pub struct Fixture {
    pub name: &'static str,
    /// The fixture whose ViT and language model it has.
    pub towers: &'static str,
}

/// All committed models.
pub const FIXTURES: [Fixture; 3] = [
    Fixture { name: "tiny", towers: "tiny" },
    Fixture { name: "tiny-gqa-bf16-sharded", towers: "tiny-gqa-bf16-sharded" },
    Fixture { name: "tiny-bottleneck3d", towers: "tiny" },
];

/// The names of a part's inputs and outputs.
pub struct PartRun {
    pub part: &'static str,
    pub inputs: &'static [&'static str],
    pub outputs: &'static [&'static str],
}

/// The parts in the order in which they run.
pub const PART_RUNS: [PartRun; 4] = [
    PartRun { part: "adapter", inputs: &["volume"], outputs: &["adapter"] },
    PartRun { part: "vision", inputs: &["adapter"], outputs: &["vision"] },
    PartRun { part: "text", inputs: &["input_ids", "attention_mask"], outputs: &["text"] },
    PartRun { part: "heads", inputs: &["vision", "text"], outputs: &["v", "t", "logits"] },
];

/// Tensors by name.
pub type Values = BTreeMap<String, Tensor>;

/// The inputs recorded with a fixture.
pub fn recorded_inputs(name: &str) -> Values {
    let file = Checkpoint::open(fixture(name).join("expected.safetensors")).unwrap();
    let tensor = |name: &str| {
        let lazy = file.get(name).unwrap_or_else(|| panic!("no {name}"));
        let values = lazy.to_f32().unwrap();
        let tensor = match name {
            "volume" => Tensor::f32(lazy.shape(), values),
            _ => Tensor::i64(lazy.shape(), values.into_iter().map(|v| v as i64).collect()),
        };
        (name.to_owned(), tensor.unwrap())
    };
    ["volume", "input_ids", "attention_mask"].map(tensor).into()
}

/// The logits `[batch, 3]` that a bundle gives, each part on the results of those before it.
pub fn logits(bundle: &Bundle, mut values: Values) -> Vec<f32> {
    for PartRun { part, inputs, outputs } in PART_RUNS {
        let path = bundle.file(&bundle.manifest.parts[part].file).unwrap();
        let mut session = Session::open(runtime(), &path, &SessionOptions::default()).unwrap();
        let feed: Vec<(&str, &Tensor)> = inputs.iter().map(|n| (*n, &values[*n])).collect();
        let found = session.run(&feed, outputs).unwrap();
        values.extend(outputs.iter().map(|name| (*name).to_owned()).zip(found));
    }
    values["logits"].as_f32().unwrap().to_vec()
}

/// The parts, in the order in which they run.
pub const PARTS: [&str; 4] = [Part::Adapter.as_str(), Part::Vision.as_str(), Part::Text.as_str(), Part::Heads.as_str()];

/// A fixture as a model folder `model` and calibration inputs `calibration` in `dir`.
pub fn write(dir: &Path, Fixture { name, towers }: Fixture) {
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
    let path =
        |part| bundle.file(bundle.manifest.graph(part, provider).unwrap_or_else(|| panic!("no {part}"))).unwrap();
    Part::ALL.map(|part| (part.as_str(), path(part))).into()
}

/// The nodes of the files as the onnx package reads them (`onnx_nodes.py`), an object a file; none where Python is
/// skipped.
pub fn nodes(files: &[PathBuf]) -> Option<Vec<Value>> {
    let report = oracle::run_python("the nodes that the onnx package reads", "tests/scripts/onnx_nodes.py", files)?;
    let mut all: Value = serde_json::from_slice(&report).unwrap();
    Some(files.iter().map(|file| all[file.to_str().unwrap()].take()).collect())
}
