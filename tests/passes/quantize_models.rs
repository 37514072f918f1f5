//! Reduced precision on random models of all sizes, with scans and reports to calibrate on: it stays close to the
//! float64 reference on inputs that the export never saw, or the export is refused.

use std::fs;
use std::path::Path;

use brain_adapter::bundle::{Bundle, Parity, Precision, Target};
use brain_adapter::error::Code;
use brain_adapter::export;
use brain_adapter::progress::Silent;
use brain_adapter::tensor::Tensor;
use support::forms;
use support::nifti_writer::{Datatype, Scan};
use support::reduced::{REPORTS, plan, write_reports};
use support::reference::{
    generate::{Case, random_case},
    weights::Random,
    write::write_case,
};

/// Scans of the model's own grid, so that what the model sees is what the reference is given.
fn write_scans(case: &Case, folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    let size = case.inputs.volume.shape[1];
    let mm = 256.0 / size as f64;
    let rng = &mut Random::new(case.seed ^ 0x5ca);
    for i in 0..count {
        let scan = Scan {
            shape: [size; 3],
            affine: [[mm, 0.0, 0.0, 0.0], [0.0, mm, 0.0, 0.0], [0.0, 0.0, mm, 0.0]],
            datatype: Datatype::F32,
            big: false,
            version: 1,
            scaling: (1.0, 0.0),
            values: (0..size * size * size).map(|_| (1000.0 * rng.unit()).round()).collect(),
        };
        fs::write(folder.join(format!("report{i}.nii")), scan.bytes()).unwrap();
    }
}

/// The model in `dir/model` and four scans with reports in `dir/calibration`.
fn written(case: &Case, dir: &Path) {
    fs::create_dir_all(dir.join("model")).unwrap();
    write_case(case, &dir.join("model"), Some(&support::package("tests/data/tokenizer/tokenizer.json")));
    write_scans(case, &dir.join("calibration"), 4);
    write_reports(&dir.join("calibration"), &REPORTS[..4]);
}

/// Probabilities of every sample, each stage on the computed one before.
fn probabilities(bundle: &Bundle, case: &Case) -> Vec<Vec<f64>> {
    let ints = |rows: &[Vec<i64>]| Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap();
    let volume = Tensor::f32(&case.inputs.volume.shape, case.inputs.volume.to_f32()).unwrap();
    let values = [
        ("volume", volume),
        ("input_ids", ints(&case.inputs.input_ids)),
        ("attention_mask", ints(&case.inputs.attention_mask)),
    ];
    let logits = forms::logits(bundle, values.map(|(name, tensor)| (name.to_owned(), tensor)).into());
    softmax(logits.into_iter().map(f64::from))
}

fn softmax(logits: impl Iterator<Item = f64>) -> Vec<Vec<f64>> {
    let logits: Vec<f64> = logits.collect();
    let row = |row: &[f64]| {
        let sum: f64 = row.iter().map(|l| l.exp()).sum();
        row.iter().map(|l| l.exp() / sum).collect()
    };
    logits.chunks(3).map(row).collect()
}

fn farthest(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

/// A form of a bundle, and how far a probability may be off in it.
struct Form {
    precision: Precision,
    target: Target,
    tolerance: f64,
}

const FORMS: [Form; 5] = [
    Form { precision: Precision::Fp16, target: Target::Cpu, tolerance: 0.01 },
    Form { precision: Precision::Int8, target: Target::Cpu, tolerance: 0.02 },
    Form { precision: Precision::Int4, target: Target::Cpu, tolerance: 0.1 },
    Form { precision: Precision::Int8, target: Target::Cuda, tolerance: 0.02 },
    Form { precision: Precision::Int8, target: Target::TensorRt, tolerance: 0.02 },
];

#[test]
fn random_models_keep_their_probabilities() {
    let mut refused = 0;
    for case in (0..16).map(random_case) {
        let dir = tempfile::tempdir().unwrap();
        written(&case, dir.path());
        let expected = softmax(case.forward()["logits"].data.iter().copied());
        // GPUs' forms are the slower ones here, where they are run for their numbers alone.
        let forms = FORMS.into_iter().filter(|form| form.target == Target::Cpu || case.seed < 6);
        for Form { precision, target, tolerance } in forms {
            let plan = export::Plan { target, ..plan(dir.path(), precision) };
            match export::run(&plan, &mut Silent) {
                Ok(summary) => {
                    let bundle = Bundle::open(&plan.output).unwrap();
                    let far = farthest(&probabilities(&bundle, &case), &expected);
                    let record = summary.quantization.unwrap();
                    let judged = record.probabilities.unwrap();
                    eprintln!("seed {} {precision} for {target}: {far:.4}, held out {judged:.4}", case.seed);
                    assert!(
                        far <= tolerance,
                        "seed {} {precision} for {target}: a probability is off by {far}",
                        case.seed
                    );
                    for part in summary.parts {
                        let checked = matches!(part.record.parity, Parity::Checked { inputs: 2.., .. });
                        assert!(checked, "{}: {:?}", part.part, part.record.parity);
                    }
                    for layer in &record.layers {
                        let error = layer.error.unwrap_or(f64::INFINITY);
                        assert!(error <= record.max_error, "seed {} {precision}: {layer:?}", case.seed);
                    }
                }
                Err(e) => {
                    assert_eq!(e.code(), Code::QUANTIZE_ERROR, "seed {}: {e}", case.seed);
                    eprintln!("seed {} {precision}: {e}", case.seed);
                    assert!(!plan.output.exists());
                    refused += 1;
                }
            }
        }
    }
    assert!(refused <= 4, "{refused} of 60 exports were refused");
}

#[test]
fn the_same_export_gives_the_same_bytes() {
    for seed in [3, 5] {
        let case = random_case(seed);
        let dir = tempfile::tempdir().unwrap();
        written(&case, dir.path());
        for Form { precision, target, .. } in FORMS {
            let mut hashes = Vec::new();
            for threads in [None, Some(1), Some(3)] {
                let plan = export::Plan { threads, target, ..plan(dir.path(), precision) };
                export::run(&plan, &mut Silent).unwrap_or_else(|e| panic!("seed {seed} {precision}: {e}"));
                hashes.push(Bundle::open(&plan.output).unwrap().sha256);
            }
            assert!(hashes.iter().all(|h| *h == hashes[0]), "seed {seed} {precision}: {hashes:?}");
        }
    }
}
