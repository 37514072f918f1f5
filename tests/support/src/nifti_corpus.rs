//! What the two corpus tests share: where the corpora are and how an expectation is compared.
//!
//! A corpus is a folder with an `expected.json`. The small ones in `tests/data` are part of the project; the large
//! ones belong to the fixtures of [`oracle::shared`].

use std::path::{Path, PathBuf};

use brain_adapter::volume::{Conformed, Grid};
use serde_json::Value;

use crate::{oracle, package};

/// The folders of the corpus `name`: the project's own, and the large one unless that is skipped.
pub fn corpora(name: &str) -> Vec<PathBuf> {
    let own = package("tests/data").join(name);
    assert!(own.join("expected.json").is_file(), "the project's own corpus is missing: {}", own.display());
    let large = oracle::shared(&format!("{name}/expected.json"));
    [own].into_iter().chain(large.map(|index| index.with_file_name(""))).collect()
}

/// The corpus' index.
pub fn index(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("expected.json")).expect("a readable expected.json");
    serde_json::from_str(&text).expect("expected.json is JSON")
}

/// A JSON array of numbers.
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map(|a| a.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
}

/// A JSON array of strings.
pub fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// The grid of a case; without one, the default.
pub fn grid(case: &Value) -> Grid {
    let (shape, mm) = (numbers(&case["out_shape"]), numbers(&case["voxel_size"]));
    match (shape.as_slice(), mm.as_slice()) {
        (&[i, j, k], &[x, y, z]) => Grid { shape: [i as usize, j as usize, k as usize], voxel_mm: [x, y, z] },
        _ => Grid::cube(64, 4.0),
    }
}

/// Largest difference from the sampled expectation, as a fraction of the case's tolerance; also how many values were
/// compared. The expectation's `NaN`s are points where the reference itself is decided by rounding.
pub fn compare(folder: &Path, case: &Value, got: &Conformed) -> (f64, usize) {
    let bytes = std::fs::read(folder.join(case["expected"].as_str().expect("expected"))).expect("the expectation");
    let expected = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let field = |name: &str| numbers(&case["sample"][name]).into_iter().map(|n| n as usize).collect::<Vec<_>>();
    let (start, step, shape) = (field("start"), field("step"), field("shape"));
    assert_eq!(bytes.len(), 4 * shape.iter().product::<usize>(), "the expectation's size");
    let tolerance = case["tolerance"].as_f64().expect("tolerance");
    let [ni, nj, _] = got.grid.shape;
    let (mut worst, mut compared) = (0.0f64, 0);
    for (at, want) in expected.enumerate().filter(|(_, want)| !want.is_nan()) {
        // C order over (i, j, k): the last index is the fastest
        let sample = [at / (shape[1] * shape[2]), at / shape[2] % shape[1], at % shape[2]];
        let [i, j, k] = [0, 1, 2].map(|a| start[a] + step[a] * sample[a]);
        let value = got.voxels[(k * nj + j) * ni + i];
        worst = worst.max(f64::from((value - want).abs()) / tolerance);
        compared += 1;
    }
    (worst, compared)
}
