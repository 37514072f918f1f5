//! Microsoft's own training runtime (onnxruntime-training 1.19.2), driven by `train.py`: for every test that has a
//! folder of training artifacts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use brain_adapter::tensor::Tensor;

/// Trains the artifacts in a folder and writes the result to `out`; gives what the script prints. `feeds` has an array
/// of batches for each of the user's inputs, `options` are those of `train.py`.
pub fn run(python: &Path, artifacts: &Path, feeds: &Path, out: &Path, options: &[(&str, &Path)]) -> Vec<u8> {
    let script = crate::package("tests/scripts/ort_training/train.py");
    let mut command = Command::new(python);
    command.arg(script).args([artifacts, feeds, out]);
    for (name, value) in options {
        command.arg(format!("--{name}")).arg(value);
    }
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// As [`run`]; gives the largest difference to each array of `expected`.
pub fn train(
    python: &Path,
    artifacts: &Path,
    feeds: &Path,
    expected: &Path,
    options: &[(&str, &Path)],
) -> BTreeMap<String, f64> {
    let scratch = tempfile::tempdir().unwrap();
    let options = [options, &[("expect", expected)]].concat();
    let report = run(python, artifacts, feeds, &scratch.path().join("out.npz"), &options);
    let found: BTreeMap<String, Option<f64>> = serde_json::from_slice(&report).unwrap();
    assert!(!found.is_empty());
    let number = |(name, d): (String, Option<f64>)| {
        let d = d.unwrap_or_else(|| panic!("`{name}` is missing, of another shape or not finite"));
        (name, d)
    };
    found.into_iter().map(number).collect()
}

/// Fails where a difference exceeds `most`.
pub fn assert_within(what: &str, differences: &BTreeMap<String, f64>, most: f64) {
    let far: Vec<_> = differences.iter().filter(|(_, d)| **d > most).collect();
    assert!(far.is_empty(), "{what}: further than {most} away: {far:?}");
}

/// Writes float32 and int64 tensors as NumPy reads them (`.npz`: a zip of `.npy`).
pub fn write_npz(path: &Path, arrays: &BTreeMap<String, Tensor>) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, tensor) in arrays {
        zip.start_file(format!("{name}.npy"), stored).unwrap();
        let (kind, data): (_, Vec<u8>) = match tensor {
            Tensor::F32(values) => ("<f4", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Tensor::I64(values) => ("<i8", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        let shape: String = tensor.shape().iter().map(|n| format!("{n},")).collect();
        let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}").into_bytes();
        header.resize((header.len() + 11).next_multiple_of(64) - 11, b' ');
        header.push(b'\n');
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&u16::try_from(header.len()).unwrap().to_le_bytes()).unwrap();
        zip.write_all(&header).unwrap();
        zip.write_all(&data).unwrap();
    }
    zip.finish().unwrap();
}

/// The float32 arrays of an `.npz` of NumPy's, flat.
pub fn read_npz(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let mut zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut all = BTreeMap::new();
    for i in 0..zip.len() {
        let mut file = zip.by_index(i).unwrap();
        let (name, mut bytes) = (file.name().unwrap().trim_end_matches(".npy").to_owned(), Vec::new());
        file.read_to_end(&mut bytes).unwrap();
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        if String::from_utf8_lossy(&bytes[..start]).contains("'<f4'") {
            let values = bytes[start..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            all.insert(name, values.collect());
        }
    }
    all
}
