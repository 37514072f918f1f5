//! Valid scans against values from nibabel and scipy: orientations, transforms, types, containers, grids.

use std::path::Path;

use brain_adapter::Warning;
use brain_adapter::volume::{self, Conformed, ReadOptions};
use serde_json::Value;
use support::nifti_corpus::{compare, corpora, grid, index, numbers, strings};

#[test]
fn corpus() {
    let mut failures = Vec::new();
    for folder in corpora("nifti") {
        let index = index(&folder);
        let cases = index["cases"].as_array().expect("cases");
        assert!(!cases.is_empty());
        let (mut worst, mut compared) = (0.0f64, 0);
        for case in cases {
            match check(&folder, case) {
                Ok((error, count)) => {
                    worst = worst.max(error);
                    compared += count;
                }
                Err(e) => failures.push(format!("{}: {e}", case["name"])),
            }
        }
        println!("{}: {} cases, {compared} values, worst {worst:.5} of the tolerance", folder.display(), cases.len());
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

fn check(folder: &Path, case: &Value) -> Result<(f64, usize), String> {
    let path = folder.join(case["file"].as_str().ok_or("no file")?);
    let volume = case.get("volume").and_then(Value::as_u64).map(|n| n as usize);
    let result = volume::read(&path, &ReadOptions { grid: grid(case), volume, ..ReadOptions::default() });
    if case["expect"] == "error" {
        let codes = strings(&case["codes"]);
        return match result {
            Err(e) if codes.contains(&e.code().as_str()) && e.path() == Some(&path) => Ok((0.0, 0)),
            Err(e) => Err(format!("{} ({e}), expected {codes:?}", e.code())),
            Ok(_) => Err(format!("accepted, expected {codes:?}")),
        };
    }
    let got = result.map_err(|e| format!("{}: {e}", e.code()))?;
    for warning in strings(&case["warnings"]) {
        if !got.warnings.iter().any(|w| w.code.as_str() == warning) {
            return Err(format!("no warning {warning}, only {:?}", got.warnings));
        }
    }
    // The corpus is about formats, with small volumes of arbitrary numbers: their quality is not asked about.
    let unexpected = |w: &&Warning| !w.code.is_quality() && !strings(&case["warnings"]).contains(&w.code.as_str());
    if let Some(w) = got.warnings.iter().find(unexpected) {
        return Err(format!("unexpected warning {}: {}", w.code, w.message));
    }
    check_report(case, &got)?;
    check_stats(case, &got)?;
    let (error, count) = compare(folder, case, &got);
    if error > 1.0 { Err(format!("differs by {error} tolerances")) } else { Ok((error, count)) }
}

/// What is reported about the scan and the grid.
fn check_report(case: &Value, got: &Conformed) -> Result<(), String> {
    let same = |what: &str, got: String, want: String| {
        if got == want { Ok(()) } else { Err(format!("{what} is {got}, expected {want}")) }
    };
    same("nonfinite", got.nonfinite.to_string(), case["nonfinite"].to_string())?;
    same("axcodes", format!("{:?}", got.source.axcodes), case["source_axcodes"].to_string())?;
    let shape: Vec<_> = numbers(&case["source_shape"]).into_iter().take(3).map(|n| n as usize).collect();
    same("shape", format!("{:?}", got.source.shape), format!("{shape:?}"))?;
    for (name, got, tolerance) in [("source_affine", got.source.affine, 1e-6), ("out_affine", got.affine, 2e-4)] {
        for (r, row) in got.iter().enumerate() {
            let want = numbers(&case[name][r]);
            if want.len() != 4 || row.iter().zip(&want).any(|(a, b)| (a - b).abs() > tolerance) {
                return Err(format!("{name} row {r} is {row:?}, expected {want:?}"));
            }
        }
    }
    Ok(())
}

/// Statistics over every voxel that the reference can decide (not within 1e-5 voxel of the scan's border).
fn check_stats(case: &Value, got: &Conformed) -> Result<(), String> {
    let stats = &case["stats"];
    let number = |name: &str| stats[name].as_f64().unwrap_or(f64::NAN);
    let decided = [0, 1, 2].map(|w| decided(got, w));
    let [ni, nj, _] = got.grid.shape;
    let (mut min, mut max, mut sum) = (f64::INFINITY, f64::NEG_INFINITY, 0.0);
    let (mut nonzero, mut counted) = (0u64, 0u64);
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for (at, &v) in got.voxels.iter().enumerate() {
        (low, high) = (low.min(v), high.max(v));
        if decided[0][at % ni] && decided[1][at / ni % nj] && decided[2][at / ni / nj] {
            let v = f64::from(v);
            (min, max, sum) = (min.min(v), max.max(v), sum + v);
            nonzero += u64::from(v != 0.0);
            counted += 1;
        }
    }
    if (low, high) != (got.min, got.max) {
        return Err(format!("min, max are {low}, {high}, reported as {}, {}", got.min, got.max));
    }
    let tolerance = case["tolerance"].as_f64().unwrap_or(0.0);
    for (name, value) in [("min", min), ("max", max), ("mean", sum / counted as f64)] {
        if (value - number(name)).abs() > tolerance {
            return Err(format!("{name} is {value}, expected {}", number(name)));
        }
    }
    // The reference's matrix inverse leaves 1e-15 voxel of noise, so some of its zeros come out as 1e-13.
    let noise = number("nonzero") - nonzero as f64;
    if counted as f64 != number("counted") || !(0.0..=0.005 * number("nonzero")).contains(&noise) {
        return Err(format!("{nonzero} of {counted} are not zero, expected {stats}"));
    }
    Ok(())
}

/// For each output index along the world axis `w`: its source coordinate is clear of the border.
fn decided(got: &Conformed, w: usize) -> Vec<bool> {
    let axis = got.source.axcodes.chars().position(|c| ["RL", "AP", "SI"][w].contains(c)).expect("three letters");
    let (n, spacing) = (got.source.shape[axis], got.source.spacing_mm[axis]);
    let count = got.grid.shape[w];
    let centre = ((count - 1) / 2) as f64;
    (0..count)
        .map(|o| {
            let c = (o as f64 - centre) * (got.grid.voxel_mm[w] / spacing) + ((n - 1) / 2) as f64;
            c.abs() >= 1e-5 && (c - (n - 1) as f64).abs() >= 1e-5
        })
        .collect()
}
