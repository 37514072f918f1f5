//! The streaming, separable conform against the formula applied to one output voxel at a time.

use brain_adapter::volume::{self, Conformed, Grid, ReadOptions};
use proptest::prelude::*;
use support::nifti_writer::{Datatype, Scan, gzip};

/// A scan whose axes are `world` with `flips`, turned and sheared by too little to change that.
#[derive(Clone, Debug)]
struct Case {
    scan: Scan,
    world: [usize; 3],
    flips: [bool; 3],
    grid: Grid,
    members: usize,
}

type Mat3 = [[f64; 3]; 3];

fn product(a: &Mat3, b: &Mat3) -> Mat3 {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..3).map(|k| a[r][k] * b[k][c]).sum()))
}

fn rotation(axis: usize, angle: f64) -> Mat3 {
    let (u, v) = ((axis + 1) % 3, (axis + 2) % 3);
    let mut m = [[0.0; 3]; 3];
    m[axis][axis] = 1.0;
    (m[u][u], m[v][v], m[u][v], m[v][u]) = (angle.cos(), angle.cos(), -angle.sin(), angle.sin());
    m
}

prop_compose! {
    fn case()(
        shape in prop::array::uniform3(2usize..14),
        world in Just([0usize, 1, 2]).prop_shuffle(),
        flips in prop::array::uniform3(any::<bool>()),
        // from exact ratios, whose coordinates hit voxels and borders, to arbitrary ones
        spacing in prop::array::uniform3(prop_oneof![Just(1.0), Just(2.0), Just(0.5), 0.3f64..4.0]),
        angles in prop_oneof![Just([0.0; 3]), prop::array::uniform3(-0.3f64..0.3)],
        shear in prop_oneof![Just(0.0), -0.1f64..0.1],
        datatype in (0..Datatype::ALL.len()).prop_map(|i| Datatype::ALL[i]),
        (big, version, members) in (any::<bool>(), 1u8..=2, 0usize..4),
        scaling in prop_oneof![Just((0.0, 7.0)), Just((1.0, 0.0)), (-3.0f64..3.0, -50.0f64..50.0)],
        out in prop::array::uniform3(1usize..20),
        out_mm in prop::array::uniform3(prop_oneof![Just(1.0), 0.4f64..3.0]),
        seed in any::<u64>(),
        holes in any::<bool>(),
    ) -> Case {
        let mut turn = product(&rotation(0, angles[0]), &product(&rotation(1, angles[1]), &rotation(2, angles[2])));
        turn[0][1] += shear;
        let mut axes = [[0.0; 3]; 3];
        for a in 0..3 {
            axes[world[a]][a] = if flips[a] { -spacing[a] } else { spacing[a] };
        }
        let linear = product(&turn, &axes);
        // stored in f32 by NIfTI-1: the oracle must see the same numbers
        let affine = linear.map(|[x, y, z]| [x, y, z, -12.5].map(|v| f64::from(v as f32)));
        let mut state = seed;
        let values = (0..shape.iter().product::<usize>()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let v = (state >> 40) as f64 / f64::from(1 << 24);
            if holes && v < 0.02 { f64::NAN } else { (v * 120.0).round() }
        });
        let values = values.collect();
        Case {
            scan: Scan { shape, affine, datatype, big, version, scaling, values },
            world: [world[0], world[1], world[2]],
            flips,
            grid: Grid { shape: out, voxel_mm: out_mm },
            members,
        }
    }
}

/// The conformed value at `(i, j, k)` by eight-point trilinear interpolation, straight from the formula.
fn naive(case: &Case, seen: &[f64], output: [usize; 3]) -> f64 {
    let n = case.scan.shape;
    let (mut low, mut weight) = ([0; 3], [0.0; 3]);
    for a in 0..3 {
        let w = case.world[a];
        let spacing = case.scan.affine.iter().map(|row| row[a] * row[a]).sum::<f64>().sqrt();
        let (last, out_n) = ((n[a] - 1) as f64, case.grid.shape[w]);
        let offset = output[w] as f64 - ((out_n - 1) / 2) as f64;
        let mut c = offset * (case.grid.voxel_mm[w] / spacing) + ((n[a] - 1) / 2) as f64;
        if case.flips[a] {
            c = last - c;
        }
        if c < -1e-6 || c > last + 1e-6 {
            return 0.0;
        }
        let c = c.clamp(0.0, last);
        low[a] = (c.floor() as usize).min(n[a] - 2);
        weight[a] = c - low[a] as f64;
    }
    (0..8)
        .map(|corner| {
            let (mut at, mut share, mut stride) = (0, 1.0, 1);
            for a in 0..3 {
                let high = corner >> a & 1;
                at += (low[a] + high) * stride;
                share *= if high == 1 { weight[a] } else { 1.0 - weight[a] };
                stride *= n[a];
            }
            share * seen[at]
        })
        .sum()
}

fn agrees(case: &Case, got: &Conformed) -> Result<(), TestCaseError> {
    let seen = case.scan.seen();
    let largest = seen.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let [ni, nj, _] = case.grid.shape;
    for (at, &value) in got.voxels.iter().enumerate() {
        let output = [at % ni, at / ni % nj, at / ni / nj];
        let want = naive(case, &seen, output);
        prop_assert!((f64::from(value) - want).abs() <= 1e-5 * largest, "{value} at {output:?}, expected {want}");
    }
    let (min, max) = got.voxels.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    prop_assert_eq!((got.min, got.max), (min, max));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streaming_is_the_formula(case in case()) {
        let plain = case.scan.bytes();
        let bytes = if case.members == 0 { plain } else { gzip(&plain, case.members) };
        let options = ReadOptions { grid: case.grid, ..ReadOptions::default() };
        match volume::read_bytes(&bytes, &options) {
            Ok(got) => {
                let nan = case.scan.values.iter().filter(|v| v.is_nan()).count() as u64;
                prop_assert_eq!(got.nonfinite, if matches!(case.scan.datatype, Datatype::F32 | Datatype::F64) { nan } else { 0 });
                agrees(&case, &got)?;
            }
            // few voxels, or a grid within one: every output may be the same
            Err(e) => {
                prop_assert_eq!(e.code().as_str(), "nifti.constant");
                let seen = case.scan.seen();
                let first = naive(&case, &seen, [0; 3]);
                let [ni, nj, nk] = case.grid.shape;
                let outputs = (0..ni * nj * nk).map(|at| naive(&case, &seen, [at % ni, at / ni % nj, at / ni / nj]));
                let same = seen.iter().all(|v| *v == seen[0]);
                prop_assert!(same || outputs.into_iter().all(|v| (v - first).abs() < 1e-4), "{}", e);
            }
        }
    }
}
