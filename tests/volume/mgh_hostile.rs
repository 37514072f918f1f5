//! Damaged, lying and malicious MGH files, made here: each is refused in one line with the right code, or read as the
//! undamaged one, within the limits of time and memory that NIfTI files have (`hostile`).

use std::path::Path;

use brain_adapter::volume::{self, Grid, ReadOptions};
use serde_json::{Value, json};
use support::mgh_writer::{HEADER, Mgh};
use support::nifti_writer::{Datatype, Scan, gzip};

use super::hostile;

const SHAPE: [usize; 3] = [9, 8, 7];
const MM: f64 = 2.0;

/// Where fields lie.
const DIM: usize = 4;
const KIND: usize = 20;
const FLAG: usize = 28;
const DELTA: usize = 30;
const COSINES: usize = 42;
const CENTRE: usize = 78;

/// The corpus under way.
struct Corpus<'a> {
    folder: &'a Path,
    cases: Vec<Value>,
}

impl Corpus<'_> {
    fn store(&mut self, name: &str, bytes: &[u8], mut case: Value) {
        let file = format!("{name}.mgz");
        std::fs::write(self.folder.join(&file), bytes).unwrap();
        case["name"] = json!(name);
        case["file"] = json!(file);
        self.cases.push(case);
    }

    /// To be read like the undamaged file, with these warnings and no others.
    fn read(&mut self, name: &str, bytes: &[u8], warnings: &[&str]) {
        self.store(name, bytes, json!({ "expect": "ok", "warnings": warnings }));
    }

    /// To be refused with one of these codes.
    fn refused(&mut self, name: &str, bytes: &[u8], codes: &[&str]) {
        self.store(name, bytes, json!({ "expect": "error", "codes": codes }));
    }

    /// As [`Self::refused`], of the undamaged file with other bytes at a place.
    fn field(&mut self, name: &str, at: usize, field: &[u8], codes: &[&str]) {
        let bytes = with(&base(), at, field);
        self.refused(name, &bytes, codes);
        self.refused(&format!("{name}_gz"), &gzip(&bytes, 1), codes);
    }
}

fn base() -> Vec<u8> {
    Mgh::coronal(SHAPE, MM as f32).bytes()
}

fn with(bytes: &[u8], at: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes
}

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// What the undamaged file conforms to, from the same scan as NIfTI.
fn expectation(folder: &Path) -> Value {
    let affine = [[-MM, 0.0, 0.0, 9.5], [0.0, 0.0, MM, -17.0], [0.0, -MM, 0.0, 16.0]];
    let values = Mgh::coronal(SHAPE, 1.0).values;
    let twin =
        Scan { shape: SHAPE, affine, datatype: Datatype::F64, big: true, version: 2, scaling: (0.0, 0.0), values };
    let n = 16;
    let got =
        volume::read_bytes(&twin.bytes(), &ReadOptions { grid: Grid::cube(n, 1.5), ..ReadOptions::default() }).unwrap();
    // C order over i, j, k
    let at = |index: usize| got.voxels[index % n * n * n + index / n % n * n + index / n / n];
    let bytes: Vec<u8> = (0..n * n * n).flat_map(|index| at(index).to_le_bytes()).collect();
    std::fs::write(folder.join("base.expect.f32"), bytes).unwrap();
    json!({
        "out_shape": [n, n, n], "voxel_size": [1.5, 1.5, 1.5], "expected": "base.expect.f32", "tolerance": 97.0 * 1e-4,
        "sample": { "start": [0, 0, 0], "step": [1, 1, 1], "shape": [n, n, n] }, "source_axcodes": "LIA",
    })
}

fn containers(corpus: &mut Corpus<'_>) {
    let bytes = base();
    let packed = gzip(&bytes, 1);
    corpus.read("plain", &bytes, &[]);
    corpus.read("gz", &packed, &[]);
    corpus.read("gz_members", &gzip(&bytes, 5), &[]);
    corpus.read("gz_padded", &[packed.clone(), vec![0; 5000]].concat(), &[]);
    corpus.read("gz_garbage", &[packed.clone(), b"garbage".to_vec()].concat(), &["trailing_data"]);
    corpus.refused("empty", b"", &["nifti.empty"]);
    corpus.refused("gz_of_nothing", &gzip(b"", 1), &["nifti.empty", "nifti.truncated"]);
    corpus.refused("gz_in_gz", &gzip(&packed, 1), &["nifti.not_nifti"]);
    for (name, end) in [("one_byte", 1), ("three_bytes", 3), ("ten_bytes", 10)] {
        corpus.refused(name, &bytes[..end], &["nifti.truncated", "nifti.not_nifti"]);
    }
    let ends = [("in_sizes", 24), ("in_header", 283), ("at_header", HEADER), ("in_voxels", bytes.len() - 1)];
    for (name, end) in ends {
        corpus.refused(&format!("cut_{name}"), &bytes[..end], &["nifti.truncated"]);
        corpus.refused(&format!("cut_{name}_gz"), &gzip(&bytes[..end], 1), &["nifti.truncated"]);
    }
    corpus.refused("gz_cut", &packed[..packed.len() / 2], &["nifti.truncated"]);
    corpus.refused("gz_no_trailer", &packed[..packed.len() - 8], &["nifti.truncated"]);
    let end = packed.len();
    corpus.refused("gz_crc", &with(&packed, end - 8, b"\x01\x02\x03\x04"), &["nifti.gzip"]);
    corpus.refused("gz_length", &with(&packed, end - 4, b"\x01\x02\x03\x04"), &["nifti.gzip"]);
    let long = gzip(&[bytes, vec![7; 3 << 20]].concat(), 1);
    let end = long.len();
    corpus.refused("gz_crc_behind_footer", &with(&long, end - 8, b"\x01\x02\x03\x04"), &["nifti.gzip"]);
}

fn footers(corpus: &mut Corpus<'_>) {
    let bytes = base();
    let tag = |number: i32, length: i64| [number.to_be_bytes().as_slice(), &length.to_be_bytes()].concat();
    let usual = Mgh::usual_footer();
    let footers = [
        ("usual", usual.clone()),
        ("one_byte", vec![0]),
        ("nan", floats(&[f32::NAN; 5])),
        ("cut", usual[..30].to_vec()),
        ("negative_tag", [&usual[..20], tag(3, -5).as_slice()].concat()),
        ("endless_tag", [&usual[..20], tag(42, i64::MAX).as_slice()].concat()),
        ("many_tags", [usual[..20].to_vec(), tag(3, 0).repeat(100_000)].concat()),
        ("eight_megabytes", vec![0; 8 << 20]),
    ];
    for (name, footer) in footers {
        let bytes = [bytes.as_slice(), &footer].concat();
        corpus.read(&format!("footer_{name}"), &bytes, &[]);
        corpus.read(&format!("footer_{name}_gz"), &gzip(&bytes, 1), &[]);
    }
    // 2 GB of zeros from 2 MB
    let bomb = [gzip(&bytes, 1), gzip(&vec![0; 16 << 20], 1).repeat(128)].concat();
    corpus.read("footer_bomb_gz", &bomb, &["trailing_data"]);
    corpus.read("footer_sparse", &bytes, &["trailing_data"]);
    let sparse = std::fs::File::options().write(true).open(corpus.folder.join("footer_sparse.mgz")).unwrap();
    sparse.set_len(1 << 36).unwrap();
}

fn sizes(corpus: &mut Corpus<'_>) {
    for (name, dim, codes) in [
        ("dim_zero", [9, 0, 7, 1], &["nifti.dims"][..]),
        ("dim_negative", [9, 8, -7, 1], &["nifti.dims"]),
        ("dim_smallest", [i32::MIN; 4], &["nifti.dims"]),
        ("dim_largest", [i32::MAX; 4], &["nifti.too_large"]),
        ("dim_wraps", [1 << 16, 1 << 16, 1 << 16, 1 << 16], &["nifti.too_large"]),
        ("dim_wide", [1 << 20, 2, 2, 1], &["nifti.too_large"]),
        ("dim_claim", [640, 640, 640, 1], &["nifti.truncated"]),
        ("dim_claim_row", [32_767, 2, 2, 1], &["nifti.truncated"]),
        ("dim_slice", [9, 56, 1, 1], &["nifti.dims"]),
        ("dim_surface", [163_842, 1, 1, 1], &["nifti.dims"]),
        ("dim_surface_frames", [1, 163_842, 1, 40], &["nifti.dims"]),
        ("frames_none", [9, 8, 7, 0], &["nifti.dims"]),
        ("frames_negative", [9, 8, 7, -1], &["nifti.dims"]),
        ("frames_two", [9, 8, 7, 2], &["nifti.volumes"]),
        ("frames_most", [9, 8, 7, i32::MAX], &["nifti.volumes"]),
    ] {
        corpus.field(name, DIM, &words(&dim), codes);
    }
    for kind in [5, 7, 8, 9, 11, -1, i32::MAX, i32::MIN] {
        corpus.field(&format!("type_{kind}"), KIND, &words(&[kind]), &["nifti.datatype"]);
    }
    // 64-bit voxels, of which there are only a quarter
    corpus.field("type_long", KIND, &words(&[2]), &["nifti.truncated"]);
    let versions = [("two", 2), ("none", 0), ("swapped", 1 << 24), ("negative", -255), ("nifti", 348)];
    for (name, version) in versions {
        corpus.field(&format!("version_{name}"), 0, &words(&[version]), &["nifti.not_nifti"]);
    }
    corpus.read("version_largest_intent", &with(&base(), 0, &words(&[0xff_ff01])), &[]);
    corpus.field("dicom", 128, b"DICM", &["nifti.not_nifti"]);
    corpus.read("unused_space", &with(&base(), 90, &[0xff; 194]), &[]);
    corpus.read("dof", &with(&base(), 24, &[0xff; 4]), &[]);
}

fn orientations(corpus: &mut Corpus<'_>) {
    let affine = &["nifti.affine"];
    for (name, mm) in
        [("zero", 0.0), ("negative", -2.0), ("nan", f32::NAN), ("infinite", f32::INFINITY), ("metres", 2e3)]
    {
        corpus.field(&format!("size_{name}"), DELTA + 4, &floats(&[mm]), affine);
    }
    corpus.field("size_tiny", DELTA, &floats(&[1e-30; 3]), affine);
    corpus.field("size_overflows", DELTA, &floats(&[3e38; 3]), affine);
    corpus.field("cosines_zero", COSINES, &floats(&[0.0; 9]), affine);
    corpus.field("cosines_nan", COSINES + 16, &floats(&[f32::NAN]), affine);
    corpus.field("cosines_parallel", COSINES, &floats(&[1.0, 0.0, 0.0].repeat(3)), affine);
    corpus.field("centre_nan", CENTRE, &floats(&[f32::NAN]), affine);
    corpus.field("centre_infinite", CENTRE + 8, &floats(&[f32::NEG_INFINITY]), affine);
    for flag in [2i16, 255, i16::MAX] {
        corpus.read(&format!("flag_{flag}"), &with(&base(), FLAG, &flag.to_be_bytes()), &[]);
    }
}

fn voxels(corpus: &mut Corpus<'_>) {
    let of = |kind: i32, value: f64| Mgh { kind, values: vec![value; 504], ..Mgh::coronal(SHAPE, 2.0) }.bytes();
    corpus.refused("constant", &of(4, 7.0), &["nifti.constant"]);
    corpus.refused("all_nan", &of(3, f64::NAN), &["nifti.constant"]);
    let mut huge = of(3, 1.0);
    huge[HEADER..HEADER + 4].copy_from_slice(&3e38f32.to_be_bytes());
    corpus.refused("huge", &huge, &["nifti.scaling"]);
}

#[test]
fn corpus() {
    let folder = tempfile::tempdir().unwrap();
    let mut corpus = Corpus { folder: folder.path(), cases: Vec::new() };
    for make in [containers, footers, sizes, orientations, voxels] {
        make(&mut corpus);
    }
    let cases = corpus.cases;
    assert!(cases.len() >= 40);
    let bound = json!({ "seconds": 2.0, "rss_mb": 512.0 });
    let index = json!({ "bound": bound, "base": expectation(folder.path()), "cases": cases });
    std::fs::write(folder.path().join("expected.json"), index.to_string()).unwrap();
    hostile::hold(folder.path());
}
