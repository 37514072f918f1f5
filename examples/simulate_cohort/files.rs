//! The files about the whole cohort, and the paths of a subject's own.

use anyhow::Result;
use brain_adapter::cohort::{Case, Split};

use super::subject::{LABELS, Subject};

/// Content of the folder's README.
pub const README: &str = "\
SIMULATED DATA. No scan, report or figure in this folder is of a real person, and nothing can be learned from it about
people. It was made by `simulate_cohort` of brain-adapter to try training on.

Scans: one template brain, smoothly deformed (wider ventricles, smaller medial temporal lobes, partly replaced by fluid), in
varying head size, pose, contrast, bias field and noise. Labels CN, MCI and AD are names of three simulated severities, not diagnoses.
Reports: templates filled with simulated facts, some left out.

cohort.csv   a row a subject: scan, report, label, split; the facts, stated in the report or not: age and education in
             years, mmse 0 to 30, cdr, complaint 0 (none) to 3 (severe), help 0 (none) to 2 (much), apoe4 alleles; and
             the strengths of the deformation, which no model may be given: ventricles, temporal (-0.4 to 1)
sub-sim*/    the scan (anat/, NIfTI-1, int16) and the report (UTF-8)

The layout follows BIDS; reports are not a part of BIDS.
The template's own licence holds for the scans, which are derived from it.
";

/// The scan's place in the folder.
pub fn scan(subject: &Subject) -> String {
    let name = subject.name();
    format!("{name}/anat/{name}_T1w.nii.gz")
}

/// The report's place in the folder.
pub fn report(subject: &Subject) -> String {
    let name = subject.name();
    format!("{name}/{name}_report.txt")
}

/// The text of `dataset_description.json`.
pub fn description(seed: u64) -> Result<String> {
    let value = serde_json::json!({
        "Name": "Simulated cohort: no real persons",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{
            "Name": "brain-adapter, example simulate_cohort",
            "Version": env!("CARGO_PKG_VERSION"),
            "Description": format!("Deformations of a template and templated reports, seed {seed}"),
        }],
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// `cohort.csv`.
pub fn list(subjects: &[Subject], rows: &[Case]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let names = ["subject", "scan", "report", "label", "split", "age", "sex", "education", "mmse", "cdr", "complaint"];
    writer.write_record(names.iter().chain(&["help", "apoe4", "ventricles", "temporal"]))?;
    for (subject, row) in subjects.iter().zip(rows) {
        let facts = &subject.facts;
        writer.write_record([
            subject.name(),
            scan(subject),
            report(subject),
            LABELS[subject.label].to_owned(),
            row.split.map_or("", Split::name).to_owned(),
            facts.age.to_string(),
            if facts.female { "F" } else { "M" }.to_owned(),
            facts.education.to_string(),
            facts.mmse.to_string(),
            facts.cdr().to_string(),
            facts.complaint.to_string(),
            facts.help.to_string(),
            facts.apoe4.to_string(),
            format!("{:.3}", subject.change.ventricles),
            format!("{:.3}", subject.change.temporal),
        ])?;
    }
    Ok(writer.into_inner()?)
}
