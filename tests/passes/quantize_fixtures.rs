//! The recorded PyTorch models in reduced precision: probabilities of what was recorded stay within 0.01.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use support::commands;
use support::common;

use std::collections::BTreeMap;
use std::fs;

use brain_adapter::bundle::{Bundle, Precision};
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use commands::{fixture, scan, write_model};

/// The recorded inputs of a fixture.
fn recorded(file: &Checkpoint) -> BTreeMap<&'static str, Tensor> {
    let tensor = |name: &'static str| {
        let lazy = file.get(name).unwrap_or_else(|| panic!("no {name}"));
        let values = lazy.to_f32().unwrap();
        let tensor = if name == "volume" {
            Tensor::f32(lazy.shape(), values)
        } else {
            Tensor::i64(lazy.shape(), values.into_iter().map(|v| v as i64).collect())
        };
        (name, tensor.unwrap())
    };
    ["volume", "input_ids", "attention_mask"].map(tensor).into()
}

fn logits(bundle: &Bundle, mut values: BTreeMap<&'static str, Tensor>) -> Vec<f32> {
    for (part, feeds, output) in [
        ("adapter", &["volume"] as &[&str], "adapter"),
        ("vision", &["adapter"], "vision"),
        ("text", &["input_ids", "attention_mask"], "text"),
        ("heads", &["vision", "text"], "logits"),
    ] {
        let path = bundle.file(&bundle.manifest.parts[part].file);
        let mut session = Session::open(common::runtime(), &path, &SessionOptions::default()).unwrap();
        let feed: Vec<(&str, &Tensor)> = feeds.iter().map(|n| (*n, &values[*n])).collect();
        let result = session.run(&feed, &[output]).unwrap().remove(0);
        values.insert(output, result);
    }
    values["logits"].as_f32().unwrap().to_vec()
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let exps: Vec<f64> = row.iter().map(|l| f64::from(*l).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.into_iter().map(move |e| e / sum).collect::<Vec<_>>()
    };
    logits.chunks(3).flat_map(row).collect()
}

#[test]
fn probabilities_stay_within_a_hundredth() {
    // A fixture's own towers, or those of the fixture that it shares them with.
    for (name, towers) in
        [("tiny", "tiny"), ("tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded"), ("tiny-bottleneck3d", "tiny")]
    {
        let dir = tempfile::tempdir().unwrap();
        let (model, calibration) = (dir.path().join("model"), dir.path().join("calibration"));
        write_model(&model, name, towers);
        fs::create_dir(&calibration).unwrap();
        fs::copy(scan(), calibration.join("report0.nii.gz")).unwrap();
        let reports: Vec<String> =
            serde_json::from_slice(&fs::read(fixture(name).join("reports.json")).unwrap()).unwrap();
        for (i, report) in reports.iter().enumerate() {
            fs::write(calibration.join(format!("report{i}.txt")), report).unwrap();
        }
        let file = Checkpoint::open(fixture(name).join("expected.safetensors")).unwrap();
        let expected = probabilities(&file.get("logits").unwrap().to_f32().unwrap());
        for (precision, most) in [(Precision::Fp16, 0.01), (Precision::Int8, 0.01), (Precision::Int4, 0.01)] {
            let plan = Plan {
                precision,
                calibration: Some(calibration.clone()),
                ..Plan::new(Sources::in_folder(&model).unwrap(), dir.path().join(precision.name()))
            };
            export::run(&plan, &mut Silent).unwrap_or_else(|e| panic!("{name} {precision}: {e}"));
            let found = probabilities(&logits(&Bundle::open(&plan.output).unwrap(), recorded(&file)));
            assert_eq!(found.len(), expected.len());
            let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            eprintln!("{name} {precision}: {far:.5}");
            assert!(far <= most, "{name} {precision}: a probability is off by {far}");
        }
    }
}
