//! Valid files with bytes flipped, overwritten, cut out or cut off: read or refused, never a panic, and nothing
//! non-finite comes out. Seeded, so that a failure can be repeated. The fuzz targets `nifti` and `mgh` go further.

use brain_adapter::volume::{self, Grid, ReadOptions};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use support::mgh_writer::Mgh;
use support::nifti_writer::{Datatype, Scan, gzip};

const CASES: u64 = 6000;

fn seeds() -> Vec<Vec<u8>> {
    struct Kind {
        version: u8,
        big: bool,
        datatype: Datatype,
    }
    let kinds = [
        Kind { version: 1, big: false, datatype: Datatype::I16 },
        Kind { version: 1, big: true, datatype: Datatype::F32 },
        Kind { version: 2, big: false, datatype: Datatype::F64 },
        Kind { version: 2, big: true, datatype: Datatype::U8 },
        Kind { version: 1, big: false, datatype: Datatype::I64 },
    ];
    let mut seeds = Vec::new();
    for Kind { version, big, datatype } in kinds {
        let shape = [5, 6, 7];
        let values = (0..210).map(|i| f64::from(i * 31 % 97)).collect();
        let affine = [[-3.0, 0.0, 0.2, 9.0], [0.0, 0.1, 4.0, -7.0], [0.3, 2.5, 0.0, 1.0]];
        let scan = Scan { shape, affine, datatype, big, version, scaling: (1.5, 2.0), values };
        let bytes = scan.bytes();
        seeds.push(gzip(&bytes, 2));
        seeds.push(bytes);
    }
    for (kind, frames) in [(4, 1), (3, 1), (0, 2)] {
        let file = Mgh { kind, ..Mgh::coronal([5, 6, 7], 2.5) };
        let values = file.values.repeat(frames);
        let bytes = Mgh { frames, values, footer: vec![1; 100], ..file }.bytes();
        seeds.push(gzip(&bytes, 2));
        seeds.push(bytes);
    }
    seeds
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..5) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        // Most of what can go wrong is in the header.
        let end = if rng.random_bool(0.7) { length.min(560) } else { length };
        let at = rng.random_range(0..end);
        match rng.random_range(0..6) {
            0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            3 => {
                let odd = [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e30, 1e-30][rng.random_range(0..6)].to_le_bytes();
                let end = length.min(at + 4);
                bytes[at..end].copy_from_slice(&odd[..end - at]);
            }
            4 => bytes.truncate(at),
            _ => drop(bytes.drain(at..length.min(at + 1 + rng.random_range(0..16)))),
        }
    }
}

#[test]
fn mutated_files_never_panic() {
    let seeds = seeds();
    let options = ReadOptions { grid: Grid::cube(9, 3.0), ..ReadOptions::default() };
    for seed in &seeds {
        let options = ReadOptions { volume: Some(0), ..options };
        volume::read_bytes(seed, &options).expect("the unchanged file");
    }
    let mut accepted = 0;
    for case in 0..CASES {
        let mut rng = StdRng::seed_from_u64(case);
        let mut bytes = seeds[rng.next_u32() as usize % seeds.len()].clone();
        mutate(&mut bytes, &mut rng);
        let volume = rng.random_bool(0.2).then_some(0);
        match volume::read_bytes(&bytes, &ReadOptions { volume, ..options }) {
            Ok(got) => {
                accepted += 1;
                assert!(got.voxels.iter().all(|v| v.is_finite()), "case {case}");
                assert!(got.min < got.max, "case {case}");
                let volume = got.normalize(Some([1.0, 99.0]));
                let inside = |v: &f32| (0.0..=1.0).contains(v);
                assert!(volume.is_err() || volume.is_ok_and(|v| v.voxels.iter().all(inside)), "case {case}");
            }
            Err(e) => assert!(!e.to_string().is_empty() && !e.to_string().contains('\n'), "case {case}"),
        }
    }
    assert!(accepted > CASES / 20, "only {accepted} of {CASES} were read: the mutations are too coarse to test much");
}
