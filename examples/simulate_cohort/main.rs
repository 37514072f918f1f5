//! Simulates a cohort to try training on: labelled scans and reports that nobody's data went into.
//!
//! ```text
//! cargo run --release --example simulate_cohort -- \
//!     --brain examples/demo/mni152_t1.nii.gz -o COHORT --subjects 240 --seed 1
//! ```
//!
//! A brain in MNI space is deformed smoothly (`anatomy`): with the severity of CN, MCI and AD the ventricles widen and
//! the medial temporal lobe shrinks and gives way to fluid, in distributions that overlap. Head size, pose, contrast,
//! bias field and noise vary (`scan`). Reports state noisy clinical facts in varying words, some left out (`report`).
//! Given the class, image and report err independently (`subject`): together they are more informative than each alone.
//!
//! **It shows that training works, and nothing else**: no figure that is reached on such data says anything of
//! patients.
//!
//! `-o` gets `sub-simNNNN/anat/sub-simNNNN_T1w.nii.gz` and `sub-simNNNN/sub-simNNNN_report.txt`, `cohort.csv` (for
//! `ba-train`, with all facts, whether a report states them or not), `dataset_description.json` and
//! `README`. The same arguments give the same bytes, whatever the number of threads.
#![allow(clippy::print_stderr)]

mod anatomy;
mod files;
mod random;
mod report;
mod scan;
mod subject;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use brain_adapter::cohort::{Case, assign_splits};
use brain_adapter::files::replace;
use clap::Parser;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use random::stream;
use scan::{Brain, acquire};
use subject::{LABELS, Subject};

#[derive(Parser)]
#[command(about = "Simulates a cohort of labelled brain scans and reports, to try training on")]
struct Args {
    /// A skull-stripped T1 brain in MNI space.
    #[arg(long)]
    brain: PathBuf,
    /// Folder to write: new, or empty.
    #[arg(short, long)]
    output: PathBuf,
    /// Subjects in all; the classes are of equal size.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u32).range(3..=9999))]
    subjects: u32,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Voxels along each edge of the scans, which cover 208 mm.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(16..=256))]
    size: u16,
    /// Fractions of training, validation and test.
    #[arg(long, value_delimiter = ',', default_value = "0.6,0.2,0.2")]
    split: Vec<f64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let out = args.output.as_path();
    let fractions = args.split.as_slice().try_into().context("--split takes three fractions, such as 0.6,0.2,0.2")?;
    let empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    ensure!(empty, "{} is not empty: give a new folder", out.display());
    let subjects = draw(args.subjects as usize, args.seed);
    let mut rows = rows(&subjects);
    assign_splits(&mut rows, fractions, args.seed)?;
    let brain = Brain::read(&args.brain)?;
    subjects.par_iter().try_for_each(|subject| write(out, &brain, subject, args.seed, args.size.into()))?;
    replace(&out.join("dataset_description.json"), files::description(args.seed)?.as_bytes())?;
    replace(&out.join("README"), files::README.as_bytes())?;
    // Last: where the list is, all else is.
    replace(&out.join("cohort.csv"), &files::list(&subjects, &rows)?)?;
    eprintln!("wrote {} simulated subjects to {}", subjects.len(), out.display());
    Ok(())
}

/// The subjects: classes of equal size (to one), in random order, so that numbers do not reveal the class.
fn draw(count: usize, seed: u64) -> Vec<Subject> {
    let mut labels: Vec<usize> = (0..count).map(|i| i % LABELS.len()).collect();
    labels.shuffle(&mut stream(seed, 0));
    let numbered = labels.into_iter().enumerate();
    numbered.map(|(i, label)| Subject::draw(i + 1, label, &mut stream(seed, 3 * i as u64 + 1))).collect()
}

/// The subjects as rows of the list, not split yet.
fn rows(subjects: &[Subject]) -> Vec<Case> {
    let row = |(i, subject): (usize, &Subject)| Case {
        line: i + 2,
        subject: subject.name(),
        spelled: None,
        volume: None,
        scan: files::scan(subject).into(),
        report: Some(files::report(subject).into()),
        label: subject.label,
        split: None,
    };
    subjects.iter().enumerate().map(row).collect()
}

/// Writes the scan and the report of a subject.
fn write(out: &Path, brain: &Brain, subject: &Subject, seed: u64, size: usize) -> Result<()> {
    let (scan, report) = (out.join(files::scan(subject)), out.join(files::report(subject)));
    let folder = scan.parent().unwrap_or(out);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let streams = 3 * (subject.number as u64 - 1);
    acquire(brain, subject, size, &mut stream(seed, streams + 2)).save(&scan)?;
    replace(&report, report::write(&subject.facts, &mut stream(seed, streams + 3)).as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests;
