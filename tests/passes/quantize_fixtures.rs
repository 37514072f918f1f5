//! The recorded PyTorch models in reduced precision: probabilities of what was recorded stay within 0.01.

#![cfg(unix)]

use brain_adapter::bundle::{Precision, Target};
use brain_adapter::checkpoint::Checkpoint;
use support::commands::fixture;
use support::forms;

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
    for model in forms::FIXTURES {
        let name = model.name;
        let dir = tempfile::tempdir().unwrap();
        forms::write(dir.path(), model);
        let file = Checkpoint::open(fixture(name).join("expected.safetensors")).unwrap();
        let expected = probabilities(&file.get("logits").unwrap().to_f32().unwrap());
        for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
            let bundle = forms::export(dir.path(), precision, Target::Cpu);
            let found = probabilities(&forms::logits(&bundle, forms::recorded_inputs(name)));
            assert_eq!(found.len(), expected.len());
            let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            eprintln!("{name} {precision}: {far:.5}");
            assert!(far <= 0.01, "{name} {precision}: a probability is off by {far}");
        }
    }
}
