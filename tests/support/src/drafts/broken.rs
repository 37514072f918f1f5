//! What breaks a scan: each kind with the code that names it.

use brain_adapter::WarningCode;
use brain_adapter::volume::Grid;

use super::{Draft, grid};
use crate::nifti_writer::Datatype;
use crate::phantom::{Cut, Frame, Head, Random, product, rotation};

/// A kind of broken scan.
pub struct Kind {
    pub name: &'static str,
    pub code: WarningCode,
    /// The file of a seed, what was chosen, and the grid to read it onto.
    pub make: fn(u64) -> (Vec<u8>, String, Grid),
}

macro_rules! kinds {
    ($($name:ident: $code:ident;)*) => {
        pub const KINDS: &[Kind] = &[$(Kind {
            name: stringify!($name),
            code: WarningCode::$code,
            make: $name,
        }),*];
    };
}

kinds! {
    mirrored_qform: XFORM_CONFLICT;
    turned_qform: XFORM_CONFLICT;
    other_pixdim: XFORM_CONFLICT;
    unusable_qform: XFORM_CONFLICT;
    tilted: OBLIQUE;
    gantry: SHEARED;
    numpy_eye: NO_ORIENTATION;
    itk_default: NO_ORIENTATION;
    no_transform: NO_ORIENTATION;
    shrunk: FOV_SMALL;
    slab: FOV_SMALL;
    cut_by_grid: FOV_CUT;
    thick: RESOLUTION;
    labels_by_intent: INTENT;
    statistics_by_intent: INTENT;
    hot_voxels: INTENSITY_RANGE;
    dead_voxels: INTENSITY_RANGE;
    hounsfield: NEGATIVE;
    z_scored: NEGATIVE;
    ratio_image: NEGATIVE;
    overflowed: WRAPPED;
    offset: BACKGROUND;
    mask: FEW_VALUES;
    label_image: FEW_VALUES;
    parcellation: FEW_VALUES;
    white_noise: NOISE;
    smooth_noise: NOISE;
    uniform_noise: NOISE;
    negated: INVERTED;
    inverted: INVERTED;
}

type Made = (Vec<u8>, String, Grid);

/// A head as it is scanned most often, without what varies between healthy ones, and the generator to go on with.
fn base(seed: u64, cut: Cut) -> (Draft, Random) {
    let mut random = Random(seed ^ 0xb0b0_b0b0);
    let head = Head { cut, ..Head::new(&mut random) };
    let spacing = [random.within(2.2, 4.0); 3];
    let flips = [0; 3].map(|_| random.index(2) == 1);
    let world = [[0, 1, 2], [1, 2, 0], [2, 0, 1]][random.index(3)];
    let margin = random.within(4.0, 30.0);
    let frame = Frame::around(head.radii, [0.0, 0.0, 8.0], (world, flips), (spacing, margin), [0.0, 0.05, 0.02]);
    let values = frame.scan(|p| head.signal(p, &mut random));
    let mut draft = Draft::of(head, frame, values);
    draft.what = format!("seed {seed}, {spacing:?}");
    (draft, random)
}

fn whole(seed: u64) -> (Draft, Random) {
    base(seed, Cut::Whole)
}

fn done(draft: &Draft) -> Made {
    (draft.bytes(), draft.what.clone(), grid())
}

fn mirrored_qform(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let mut mirror = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let axis = random.index(3);
    mirror[axis][axis] = -1.0;
    draft.qform = Some((product(&mirror, &draft.frame.axes), draft.frame.spacing));
    done(&draft)
}

fn turned_qform(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let degrees = random.within(5.5, 180.0);
    let turn = rotation(random.index(3), degrees.to_radians());
    draft.qform = Some((product(&turn, &draft.frame.axes), draft.frame.spacing));
    draft.what += &format!(", {degrees} degrees");
    done(&draft)
}

fn other_pixdim(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let mut spacing = draft.frame.spacing;
    spacing[random.index(3)] *= [0.5, 0.97, 1.03, 2.0, 10.0][random.index(5)];
    draft.qform = Some((draft.frame.axes, spacing));
    done(&draft)
}

fn unusable_qform(seed: u64) -> Made {
    let (mut draft, _) = whole(seed);
    draft.qform = Some((draft.frame.axes, draft.frame.spacing));
    let mut bytes = draft.bytes();
    bytes[256..260].copy_from_slice(&2f32.to_le_bytes());
    (bytes, draft.what, grid())
}

fn tilted(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let degrees = random.within(24.0, 44.0);
    let turn = rotation(random.index(3), degrees.to_radians());
    draft.frame.axes = product(&turn, &draft.frame.axes);
    rescan(&mut draft, &mut random);
    draft.what += &format!(", {degrees} degrees");
    done(&draft)
}

fn gantry(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let (to, from) = [(0, 1), (1, 2), (2, 0)][random.index(3)];
    let shear = random.within(0.03, 0.45);
    draft.frame.axes.iter_mut().for_each(|row| row[to] += shear * row[from]);
    rescan(&mut draft, &mut random);
    done(&draft)
}

/// The same head on a grid that has changed.
fn rescan(draft: &mut Draft, random: &mut Random) {
    let head = draft.head.clone();
    draft.values = draft.frame.scan(|p| head.signal(p, random));
}

fn eye(signs: [f64; 3]) -> [[f64; 4]; 3] {
    std::array::from_fn(|r| std::array::from_fn(|c| if r == c { signs[r] } else { 0.0 }))
}

fn numpy_eye(seed: u64) -> Made {
    let (draft, _) = whole(seed);
    (draft.bytes_with(eye([1.0; 3])), draft.what, grid())
}

fn itk_default(seed: u64) -> Made {
    let (draft, _) = whole(seed);
    (draft.bytes_with(eye([-1.0, -1.0, 1.0])), draft.what, grid())
}

fn no_transform(seed: u64) -> Made {
    let (draft, _) = whole(seed);
    let mut bytes = draft.bytes();
    bytes[252..256].fill(0);
    (bytes, draft.what, grid())
}

fn shrunk(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let factor = random.within(0.05, 0.35);
    draft.frame.spacing = draft.frame.spacing.map(|mm| mm * factor);
    done(&draft)
}

fn slab(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let [n0, n1, n2] = draft.frame.shape;
    let kept = ((random.within(20.0, 90.0) / draft.frame.spacing[2]) as usize).clamp(3, n2);
    let first = (n2 - kept) / 2;
    draft.values = draft.values[n0 * n1 * first..n0 * n1 * (first + kept)].to_vec();
    draft.frame.shape[2] = kept;
    done(&draft)
}

fn cut_by_grid(seed: u64) -> Made {
    let (draft, _) = whole(seed);
    (draft.bytes(), draft.what, Grid::cube(40, 4.0))
}

fn thick(seed: u64) -> Made {
    let mut random = Random(seed ^ 0x7cc7);
    let head = Head::new(&mut random);
    let spacing = [2.5, 2.5, random.within(6.3, 10.0)];
    let axes = ([0, 1, 2], [random.index(2) == 1, false, false]);
    let frame = Frame::around(head.radii, [0.0, 0.0, 8.0], axes, (spacing, 10.0), [0.0; 3]);
    let values = frame.scan(|p| head.signal(p, &mut random));
    done(&Draft::of(head, frame, values))
}

fn labels_by_intent(seed: u64) -> Made {
    let (mut draft, _) = whole(seed);
    draft.intent = 1002;
    done(&draft)
}

fn statistics_by_intent(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    draft.intent = 2 + random.index(23) as i16;
    done(&draft)
}

fn outliers(seed: u64, sign: f64) -> Made {
    let (mut draft, mut random) = whole(seed);
    draft.datatype = Datatype::F32;
    let value = sign * random.within(1.2e4, 1e6);
    for _ in 0..1 + random.index(5) {
        let at = random.index(draft.values.len());
        draft.values[at] = value;
    }
    draft.what += &format!(", {value}");
    done(&draft)
}

fn hot_voxels(seed: u64) -> Made {
    outliers(seed, 1.0)
}

fn dead_voxels(seed: u64) -> Made {
    outliers(seed, -1.0)
}

fn hounsfield(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let head = draft.head.clone();
    draft.values = draft.frame.scan(|p| match head.tissue(p).0 {
        0 => -1000.0 + 5.0 * random.normal(),
        4 => 900.0 + 50.0 * random.normal(),
        label => 10.0 * f64::from(label) + 4.0 * random.normal(),
    });
    done(&draft)
}

fn z_scored(seed: u64) -> Made {
    let (mut draft, _) = base(seed, Cut::Stripped);
    let inside: Vec<f64> = draft.values.iter().copied().filter(|v| *v > 0.0).collect();
    let mean = inside.iter().sum::<f64>() / inside.len() as f64;
    let deviation = (inside.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / inside.len() as f64).sqrt();
    draft.values.iter_mut().filter(|v| **v > 0.0).for_each(|v| *v = (*v - mean) / deviation);
    draft.datatype = Datatype::F32;
    done(&draft)
}

fn ratio_image(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let head = draft.head.clone();
    draft.values = draft.frame.scan(|p| match head.tissue(p) {
        (0, _) => random.within(-0.5, 0.5),
        (_, clean) => clean / 700.0 - 0.5 + 0.02 * random.normal(),
    });
    draft.datatype = Datatype::F32;
    done(&draft)
}

fn overflowed(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let factor = random.within(60.0, 90.0);
    for v in &mut draft.values {
        let unsigned = (*v * factor).round().min(65_535.0);
        *v = if unsigned > 32_767.0 { unsigned - 65_536.0 } else { unsigned };
    }
    done(&draft)
}

fn offset(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    let shift = random.within(700.0, 8000.0);
    draft.values.iter_mut().for_each(|v| *v += shift);
    draft.what += &format!(", {shift}");
    done(&draft)
}

fn of_tissue(seed: u64, mut value: impl FnMut(u8, [f64; 3]) -> f64) -> Made {
    let (mut draft, _) = whole(seed);
    let head = draft.head.clone();
    draft.values = draft.frame.scan(|p| value(head.tissue(p).0, p));
    done(&draft)
}

fn mask(seed: u64) -> Made {
    of_tissue(seed, |label, _| f64::from(u8::from((1..=3).contains(&label))))
}

fn label_image(seed: u64) -> Made {
    of_tissue(seed, |label, _| f64::from(label) * 10.0)
}

/// Some hundred areas, as of an atlas: blocks of 25 mm within the brain.
fn parcellation(seed: u64) -> Made {
    of_tissue(seed, |label, p| {
        let [x, y, z] = p.map(|mm| ((mm + 150.0) / 25.0).floor());
        if (1..=3).contains(&label) { 1000.0 + x + 12.0 * y + 144.0 * z } else { 0.0 }
    })
}

fn white_noise(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    draft.values.iter_mut().for_each(|v| *v = 500.0 + 100.0 * random.normal());
    done(&draft)
}

fn uniform_noise(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    draft.values.iter_mut().for_each(|v| *v = random.within(0.0, 1000.0));
    draft.datatype = Datatype::U8;
    done(&draft)
}

/// Noise that was smoothed by a box of three voxels along each row and across rows.
fn smooth_noise(seed: u64) -> Made {
    let (mut draft, mut random) = whole(seed);
    draft.values.iter_mut().for_each(|v| *v = random.within(0.0, 1000.0));
    let [n0, n1, _] = draft.frame.shape;
    for step in [1, n0, n0 * n1] {
        let before = draft.values.clone();
        for (at, v) in draft.values.iter_mut().enumerate() {
            let around = [at.checked_sub(step), Some(at), Some(at + step)];
            let found: Vec<f64> = around.into_iter().flatten().filter_map(|i| before.get(i).copied()).collect();
            *v = found.iter().sum::<f64>() / found.len() as f64;
        }
    }
    done(&draft)
}

fn negated(seed: u64) -> Made {
    let (mut draft, _) = whole(seed);
    draft.values.iter_mut().for_each(|v| *v = -*v);
    done(&draft)
}

fn inverted(seed: u64) -> Made {
    let (mut draft, _) = whole(seed);
    let max = draft.values.iter().copied().fold(0.0, f64::max);
    draft.values.iter_mut().for_each(|v| *v = max - *v);
    done(&draft)
}
