//! The simulated subject: a class, from it two hidden severities, and from those anatomy, acquisition and clinical
//! facts.
//!
//! Given the class, the severity of the images and that of the symptoms are independent: each modality has errors of
//! its own, so both together are more informative than either. Images tell CN from MCI better, symptoms tell MCI from
//! AD better.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::anatomy::Change;
use super::random::{chance, normal};

/// The classes, in order of severity.
pub const LABELS: [&str; 3] = ["CN", "MCI", "AD"];

/// Mean severity in the images by class; the standard deviation is [`IMAGE_STD`].
const IMAGE: [f64; 3] = [0.0, 1.3, 2.0];
const IMAGE_STD: f64 = 0.45;
/// Mean severity of the symptoms by class; the standard deviation is [`SYMPTOM_STD`].
const SYMPTOMS: [f64; 3] = [0.0, 0.75, 1.9];
const SYMPTOM_STD: f64 = 0.45;

/// Clinical facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Years.
    pub age: u32,
    pub female: bool,
    /// Years of school and university.
    pub education: u32,
    /// Mini-Mental State Examination, 0 to 30 points; fewer is worse.
    pub mmse: u32,
    /// Clinical Dementia Rating, in halves: 0, 1 (0.5), 2 (1), 4 (2).
    pub cdr_halves: u32,
    /// Memory complaint: 0 none, 1 mild, 2 moderate, 3 severe.
    pub complaint: usize,
    /// Months since the first complaint; meaningless without one.
    pub months: u32,
    /// Help in daily life: 0 none, 1 some, 2 much.
    pub help: usize,
    /// Alleles ε4 of APOE, 0 to 2.
    pub apoe4: u32,
}

/// Pose of the head, and the properties of the scanner.
#[derive(Clone, Debug, PartialEq)]
pub struct Acquisition {
    /// Rotation of the head about right, anterior, superior, in radians.
    pub turn: [f64; 3],
    /// Position of the head in the scanner, in mm.
    pub shift: [f64; 3],
    /// Rotation of the slices against the scanner, in radians: the affine records this one.
    pub tilt: [f64; 3],
    /// Centre of the grid in the scanner, in mm.
    pub offset: [f64; 3],
    /// Whether the first axis is stored right to left (LAS), as DICOM converters do.
    pub flipped: bool,
    /// Grey value of the brightest tissue.
    pub gain: f64,
    /// Exponent of the contrast.
    pub gamma: f64,
    /// Coefficients of the logarithm of the bias field, see [`super::scan`].
    pub bias: [f64; 6],
    /// Standard deviation of the noise, as a fraction of `gain`.
    pub noise: f64,
}

/// A simulated subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// From 1.
    pub number: usize,
    /// Index into [`LABELS`].
    pub label: usize,
    /// Difference from the template's anatomy.
    pub change: Change,
    /// Size of the head along right, anterior, superior, relative to the template's.
    pub scale: [f64; 3],
    pub acquisition: Acquisition,
    pub facts: Facts,
}

impl Subject {
    /// Draws a subject of class `label`.
    pub fn draw(number: usize, label: usize, rng: &mut ChaCha8Rng) -> Self {
        let image = normal(rng, IMAGE[label], IMAGE_STD);
        let symptoms = normal(rng, SYMPTOMS[label], SYMPTOM_STD);
        let facts = Facts::draw(label, symptoms, rng);
        let years = (f64::from(facts.age) - 74.0) / 10.0;
        // Healthy brains age too: ventricles widen with the years in every class.
        let ventricles = 0.04 + 0.34 * image + 0.06 * years + normal(rng, 0.0, 0.05);
        let temporal = 0.04 + 0.34 * image + 0.03 * years + normal(rng, 0.0, 0.07);
        let change = Change {
            ventricles: ventricles.clamp(-0.4, 1.0),
            temporal: temporal.clamp(-0.4, 1.0),
            asymmetry: normal(rng, 0.0, 0.07),
        };
        let size = normal(rng, if facts.female { 0.985 } else { 1.015 }, 0.02);
        let scale = [0, 1, 2].map(|_| size * normal(rng, 1.0, 0.01));
        Self { number, label, change, scale, acquisition: Acquisition::draw(rng), facts }
    }

    /// The name, such as `sub-sim0001`.
    pub fn name(&self) -> String {
        format!("sub-sim{:04}", self.number)
    }
}

impl Acquisition {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let mut three = |std: f64| [0, 1, 2].map(|_| normal(rng, 0.0, std));
        let (turn, shift, tilt, offset) = (three(0.025), three(1.5), three(0.02), three(1.5));
        Self {
            turn,
            shift,
            tilt,
            offset,
            flipped: chance(rng, 0.5),
            gain: 700.0 * normal(rng, 0.0, 0.25).exp(),
            gamma: normal(rng, 0.0, 0.06).exp(),
            bias: [0; 6].map(|_| normal(rng, 0.0, 0.05)),
            noise: 0.01 + 0.02 * rng.random::<f64>(),
        }
    }
}

impl Facts {
    fn draw(label: usize, symptoms: f64, rng: &mut ChaCha8Rng) -> Self {
        let whole = |value: f64, low: f64, high: f64| value.round().clamp(low, high) as u32;
        // Each fact measures the same severity with an error of its own.
        let mmse = normal(rng, 29.0 - 3.2 * symptoms.max(0.0), 1.3);
        let mut measured = |error: f64| symptoms + normal(rng, 0.0, error);
        let grade = |value: f64, limits: &[f64]| limits.iter().filter(|limit| value > **limit).count();
        let (cdr, complaint, help) = (measured(0.35), measured(0.45), measured(0.45));
        let cdr_halves = [0, 1, 2, 4][grade(cdr, &[0.5, 1.5, 2.7])];
        let allele = [0.14, 0.24, 0.36][label];
        Self {
            age: whole(normal(rng, [73.0, 74.0, 75.5][label], 6.5), 55.0, 94.0),
            female: chance(rng, 0.52),
            education: whole(normal(rng, [15.5, 15.0, 14.5][label], 3.0), 6.0, 22.0),
            mmse: whole(mmse, 8.0, 30.0),
            cdr_halves,
            complaint: grade(complaint, &[0.4, 1.3, 2.2]),
            months: whole(normal(rng, 14.0 + 10.0 * symptoms.max(0.0), 7.0), 2.0, 90.0),
            help: grade(help, &[0.9, 2.0]),
            apoe4: u32::from(chance(rng, allele)) + u32::from(chance(rng, allele)),
        }
    }

    /// The CDR as it is written: `0`, `0.5`, `1`, `2`.
    pub fn cdr(&self) -> f64 {
        f64::from(self.cdr_halves) / 2.0
    }
}
