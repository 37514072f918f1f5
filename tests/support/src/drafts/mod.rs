//! Drafts of scans, healthy ones with all that varies between them, and broken ones, each kind with the code that names
//! it. By a seed. The property tests of quality warnings read them, and the pictures of `docs/quality.md` show them.

pub mod broken;

use brain_adapter::volume::Grid;

use crate::nifti_writer::{Datatype, Scan};
use crate::phantom::{Cut, Frame, Head, Mat3, Random, file, product, rotation, stored};

/// The demo's voxels; 320 mm, so that nothing healthy is cut.
pub fn grid() -> Grid {
    Grid::cube(80, 4.0)
}

/// A scan that is still to be written.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The head.
    pub head: Head,
    /// The grid of the file.
    pub frame: Frame,
    /// Values, the first axis fastest.
    pub values: Vec<f64>,
    pub datatype: Datatype,
    /// Whether integers use their whole range.
    pub full: bool,
    /// Axes and voxel sizes of the qform.
    pub qform: Option<(Mat3, [f64; 3])>,
    pub intent: i16,
    /// What was chosen, for the message of a failure.
    pub what: String,
}

impl Draft {
    /// A healthy scan.
    pub fn healthy(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut head = Head::new(&mut random);
        head.cut = [Cut::Whole, Cut::Whole, Cut::Defaced, Cut::Stripped][random.index(4)];
        let world = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][random.index(6)];
        let flips = [0; 3].map(|_| random.index(2) == 1);
        let spacing = match random.index(50) {
            0 => [random.within(0.9, 1.3); 3],
            1..=9 => {
                let plane = random.within(2.0, 3.0);
                [plane, plane, random.within(4.0, 6.0)]
            }
            _ => [random.within(1.8, 4.2); 3],
        };
        let tight = head.cut == Cut::Stripped && random.index(2) == 0;
        let (radii, margin) = match tight {
            true => (head.brain(), random.within(0.0, 4.0)),
            false => (head.radii, random.within(3.0, 40.0)),
        };
        // Up to 15 degrees in all.
        let angles = [0; 3].map(|_| random.within(-0.15, 0.15));
        let frame = Frame::around(radii, [0.0, 0.0, 8.0], (world, flips), (spacing, margin), angles);
        let values = frame.scan(|p| head.signal(p, &mut random));
        let (mut draft, datatype) = (Self::of(head, frame, values), random.index(7));
        draft.datatype =
            [Datatype::I16, Datatype::I16, Datatype::U8, Datatype::F32, Datatype::U16, Datatype::F64, Datatype::I32]
                [datatype];
        draft.full = random.index(4) == 0;
        draft.qform = draft.like_sform(&mut random);
        draft.what = format!("seed {seed}: {:?} {spacing:?} {:?} full {}", draft.head.cut, draft.datatype, draft.full);
        draft.vary(&mut random);
        draft
    }

    /// A draft of these values, in 16-bit integers with a sform alone.
    pub fn of(head: Head, frame: Frame, values: Vec<f64>) -> Self {
        let (datatype, qform, what) = (Datatype::I16, None, String::new());
        Self { head, frame, values, datatype, full: false, qform, intent: 0, what }
    }

    /// No qform, an equal one, or one that differs by less than matters.
    fn like_sform(&self, random: &mut Random) -> Option<(Mat3, [f64; 3])> {
        let Frame { axes, spacing, .. } = &self.frame;
        match random.index(4) {
            0 => None,
            1 => {
                let turn = rotation(random.index(3), random.within(-0.06, 0.06));
                let factor = random.within(0.99, 1.01);
                Some((product(&turn, axes), spacing.map(|mm| mm * factor)))
            }
            _ => Some((*axes, *spacing)),
        }
    }

    /// What is usual in intensities: tiny ones, a spline's overshoot, an offset of nothing.
    fn vary(&mut self, random: &mut Random) {
        match random.index(8) {
            0 if matches!(self.datatype, Datatype::F32 | Datatype::F64) => {
                self.values.iter_mut().for_each(|v| *v *= 1e-7);
                self.what += " tiny";
            }
            1 if self.datatype != Datatype::U8 => {
                // A spline leaves values a little below 0 next to bright edges: at one voxel in 2000.
                let count = self.values.len() / 2000;
                for _ in 0..count {
                    let at = random.index(self.values.len());
                    self.values[at] = -random.within(0.0, 0.05) * 700.0;
                }
                self.what += " overshoot";
            }
            2 => {
                // Vessels are brighter than all else.
                for _ in 0..self.values.len() / 3000 {
                    let at = random.index(self.values.len());
                    self.values[at] = random.within(700.0, 1800.0);
                }
                self.what += " vessels";
            }
            _ => {}
        }
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with(self.frame.affine())
    }

    /// The file with another sform.
    pub fn bytes_with(&self, affine: [[f64; 4]; 3]) -> Vec<u8> {
        let (values, scaling) = stored(self.values.clone(), self.datatype, self.full);
        let (shape, datatype) = (self.frame.shape, self.datatype);
        let scan = Scan { shape, affine, datatype, big: false, version: 1, scaling, values };
        file(&scan, self.qform.as_ref().map(|(axes, spacing)| (axes, *spacing)), self.intent)
    }
}
