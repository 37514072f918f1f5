//! A scan's file to the tensor that the model takes: 256³ voxels of 1 mm, 0 to 1.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use brain_adapter::volume::{self, ReadOptions};
use serde_json::json;

use super::process::{Contender, report};
use super::report::Bound::{AtLeast, AtMost};
use super::report::{Floor, Rate};
use super::suite::{Suite, compare, root};

const OURS: &str = "ours";
/// Without the quality figures of voxels.
const UNMEASURED: &str = "ours, no quality figures";

pub fn run(suite: &mut Suite) -> Result<()> {
    let template = root().join("examples/demo/mni152_t1.nii.gz");
    let mut scans = vec![("the demo's template", template)];
    for name in ["axial", "sagittal"] {
        scans.insert(scans.len() - 1, (name, synthetic(&suite.path(&format!("{name}.nii.gz")), name)?));
    }
    for (name, path) in scans {
        let what = format!("scan → tensor, {name}");
        let file = path.to_string_lossy().into_owned();
        // Short, and one reading a process.
        let rounds = suite.options.rounds.max(5);
        let contenders = vec![
            Contender::new(OURS, rounds, || suite.child(&["scan", &file])),
            Contender::new(UNMEASURED, rounds, || suite.child(&["scan-unmeasured", &file])),
            Contender::new("MONAI", rounds, || suite.peer("scan.py", &["monai", &file])),
            Contender::new("nibabel `conform`", rounds, || suite.peer("scan.py", &["nibabel", &file])),
            Contender::new("inflate", rounds, || suite.child(&["inflate", &file])),
        ];
        let mut rows = compare(&what, contenders);
        let inflate = rows.pop().map_or_else(|| Err("not run".into()), |row| row.outcome);
        suite.report.extend(rows);
        let rate = inflate.clone().and_then(|run| run.number("rate").map(|r| r / 1e9).ok_or("not measured".into()));
        let with = format!("zlib-rs, one core, {name}");
        suite.report.rates.push(Rate { what: "inflate, bytes out".into(), with, rate, unit: "GB/s" });
        let floor = inflate.ok().map(|run| Floor::Seconds(run.seconds));
        let bytes = std::fs::metadata(&path).ok().map(|m| m.len());
        suite.amend(&what, OURS, |f| (f.bytes, f.floor) = (bytes, floor));
        let found = ["nibabel `conform`", "MONAI"].map(|peer| suite.report.speedup(&what, OURS, peer));
        suite.report.target(format!("{what}: against nibabel"), found[0], AtLeast(8.0), "times as fast");
        suite.report.target(format!("{what}: against MONAI"), found[1], AtLeast(1.3), "times as fast");
        let cost = suite.report.speedup(&what, UNMEASURED, OURS);
        suite.report.target(format!("{what}: with quality figures"), cost, AtMost(1.1), "times the time without");
        let peak = suite.report.peak_mb(&what, OURS);
        suite.report.target(format!("{what}: peak"), peak, AtMost(128.0), "MB");
    }
    suite.report.notes.push(
        "Scans: axial and sagittal are 256³ int16 voxels of 1 mm with noise, the template the demo's. The floor is inflating \
         the same file with zlib-rs and dropping the bytes. Peers: trilinear, normalised, imports not counted."
            .into(),
    );
    Ok(())
}

/// Reads, conforms and normalises one scan.
pub fn child(path: &Path) -> Result<()> {
    let start = Instant::now();
    let volume = volume::read(path, &ReadOptions::default())?.normalize(None)?;
    let seconds = start.elapsed().as_secs_f64();
    std::hint::black_box(&volume.voxels);
    report(seconds, &json!({}));
    Ok(())
}

/// The same without the quality figures of voxels.
pub fn unmeasured(path: &Path) -> Result<()> {
    let start = Instant::now();
    let volume = volume::read_unmeasured(path, &ReadOptions::default())?.normalize(None)?;
    let seconds = start.elapsed().as_secs_f64();
    std::hint::black_box(&volume.voxels);
    report(seconds, &json!({}));
    Ok(())
}

/// Inflates one file and drops the bytes: the best of three.
pub fn inflate(path: &Path) -> Result<()> {
    let (mut best, mut block, mut bytes) = (f64::INFINITY, vec![0; 1 << 16], 0);
    for _ in 0..3 {
        let start = Instant::now();
        bytes = 0;
        let mut stream = flate2::read::MultiGzDecoder::new(std::fs::File::open(path)?);
        loop {
            match stream.read(&mut block)? {
                0 => break,
                n => bytes += n,
            }
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    report(best, &json!({"rate": bytes as f64 / best}));
    Ok(())
}

/// A 256³ int16 scan of 1 mm: a smooth head in noise, as compressible as a real one (about half its size).
fn synthetic(path: &Path, name: &str) -> Result<PathBuf> {
    const N: usize = 256;
    let rows: [[f32; 4]; 3] = match name {
        "sagittal" => [[0.0, 0.0, -1.0, 128.0], [1.0, 0.0, 0.0, -128.0], [0.0, -1.0, 0.0, 128.0]],
        _ => [[-1.0, 0.0, 0.0, 128.0], [0.0, 1.0, 0.0, -128.0], [0.0, 0.0, 1.0, -128.0]],
    };
    let mut header = vec![0; 352];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    for (i, d) in [3, N as i16, N as i16, N as i16, 1, 1, 1, 1].iter().enumerate() {
        put(40 + 2 * i, &d.to_le_bytes());
    }
    put(70, &4i16.to_le_bytes());
    put(72, &16i16.to_le_bytes());
    for i in 0..4 {
        put(76 + 4 * i, &1f32.to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(254, &1i16.to_le_bytes());
    for (i, v) in rows.iter().flatten().enumerate() {
        put(280 + 4 * i, &v.to_le_bytes());
    }
    put(344, b"n+1\0");
    let file = std::fs::File::create(path)?;
    let mut out = flate2::write::GzEncoder::new(std::io::BufWriter::new(file), flate2::Compression::new(6));
    out.write_all(&header)?;
    let mut state = 1u64;
    let mut slice = Vec::with_capacity(2 * N * N);
    for k in 0..N {
        slice.clear();
        for at in 0..N * N {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 58) as i16;
            let r = [at % N, at / N, k].iter().map(|&c| (c as f32 / 128.0 - 1.0).powi(2)).sum::<f32>();
            let head = if r < 0.7 { (900.0 * (1.0 - r)) as i16 + noise } else { noise / 4 };
            slice.extend(head.to_le_bytes());
        }
        out.write_all(&slice)?;
    }
    out.finish().and_then(|mut f| f.flush()).context("the scan could not be written")?;
    Ok(path.to_path_buf())
}
