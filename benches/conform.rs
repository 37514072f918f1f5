//! Seconds and peak memory of reading and conforming a scan to 256³ voxels of 1 mm.
//!
//! ```text
//! cargo bench --bench conform [-- SCAN…]
//! BA_PYTHON=/path/to/python cargo bench --bench conform        # beside nibabel, runs interleaved
//! ```
//!
//! Without an argument: synthetic 256³ int16 scans with scanner-like noise (axial, sagittal; 1 mm and 1.02 mm), and
//! the template of `../shared/scans` where it exists. Every run is a process of its own, so that peaks are its own;
//! figures are the best of five, of the work alone, without the process's start.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use brain_adapter::volume::{self, ReadOptions};

const RUNS: usize = 5;
const CHILD: &str = "BA_BENCH_CONFORM";
const TEMPLATE: &str = "../shared/scans/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz";

/// The reference: float64 data (nibabel would round an integer scan), trilinear, 0 outside.
const NIBABEL: &str = "
import resource, sys, time
import numpy as np, nibabel as nib
from nibabel.processing import conform
start = time.perf_counter()
image = nib.load(sys.argv[1])
image = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float64), image.affine)
image = conform(image, out_shape=(256,) * 3, voxel_size=(1, 1, 1), order=1, cval=0.0, orientation='RAS')
voxels = np.asarray(image.dataobj, dtype=np.float32)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
";

fn main() {
    if let Some(path) = std::env::var_os(CHILD) {
        return child(Path::new(&path));
    }
    let mut paths: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(PathBuf::from).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    if paths.is_empty() {
        for (name, mm) in [("axial", 1.0), ("axial", 1.02), ("sagittal", 1.0), ("sagittal", 1.02)] {
            paths.push(synthetic(folder.path(), name, mm));
        }
        paths.extend(Some(PathBuf::from(TEMPLATE)).filter(|p| p.exists()));
    }
    println!("{:<52} {:>8} {:>16} {:>18}", "scan", "file", "brain_adapter", "nibabel");
    for path in paths {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..RUNS {
            ours.extend(measure(Command::new(std::env::current_exe().expect("own path")).env(CHILD, &path)));
            if let Some(python) = std::env::var_os("BA_PYTHON") {
                theirs.extend(measure(Command::new(python).arg("-c").arg(NIBABEL).arg(&path)));
            }
        }
        let megabytes = std::fs::metadata(&path).map_or(0.0, |m| m.len() as f64 / 1e6);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("{name:<52} {megabytes:>5.1} MB {:>16} {:>18}", best(&ours), best(&theirs));
    }
}

/// Reads one scan and prints seconds and peak KiB.
fn child(path: &Path) {
    let start = Instant::now();
    let conformed = volume::read(path, &ReadOptions::default()).expect("a readable scan");
    let seconds = start.elapsed().as_secs_f64();
    std::hint::black_box(&conformed.voxels);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).map_or("0", |l| l.trim().trim_end_matches(" kB"));
    println!("{seconds} {peak}");
}

fn measure(command: &mut Command) -> Option<(f64, f64)> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().ok());
    let run = numbers.next().flatten().zip(numbers.next().flatten());
    if run.is_none() {
        eprintln!("a run failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    run
}

fn best(runs: &[(f64, f64)]) -> String {
    let least = |pick: fn(&(f64, f64)) -> f64| runs.iter().map(pick).fold(f64::INFINITY, f64::min);
    if runs.is_empty() { "-".into() } else { format!("{:.3} s {:.0} MiB", least(|r| r.0), least(|r| r.1) / 1024.0) }
}

/// A 256³ int16 scan: a smooth head in noise, as compressible as a real one (about half its size).
fn synthetic(folder: &Path, name: &str, mm: f32) -> PathBuf {
    const N: usize = 256;
    let rows: [[f32; 4]; 3] = match name {
        "sagittal" => [[0.0, 0.0, -mm, 128.0], [mm, 0.0, 0.0, -128.0], [0.0, -mm, 0.0, 128.0]],
        _ => [[-mm, 0.0, 0.0, 128.0], [0.0, mm, 0.0, -128.0], [0.0, 0.0, mm, -128.0]],
    };
    let mut header = vec![0; 352];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    for (i, d) in [3, N as i16, N as i16, N as i16, 1, 1, 1, 1].iter().enumerate() {
        put(40 + 2 * i, &d.to_le_bytes());
    }
    put(70, &4i16.to_le_bytes());
    put(72, &16i16.to_le_bytes());
    put(108, &352f32.to_le_bytes());
    put(254, &1i16.to_le_bytes());
    for (i, v) in rows.iter().flatten().enumerate() {
        put(280 + 4 * i, &v.to_le_bytes());
    }
    put(344, b"n+1\0");
    let path = folder.join(format!("synthetic_{name}_{mm}mm.nii.gz"));
    let file = std::fs::File::create(&path).expect("a temporary file");
    let mut out = flate2::write::GzEncoder::new(std::io::BufWriter::new(file), flate2::Compression::new(6));
    out.write_all(&header).expect("room for the header");
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
        out.write_all(&slice).expect("room for a slice");
    }
    out.finish().and_then(|mut f| f.flush()).expect("a finished file");
    path
}
