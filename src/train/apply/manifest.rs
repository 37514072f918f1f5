//! The manifest of a bundle's new version.

use crate::bundle::{Bundle, FileRecord, Manifest, SourceRecord, Temperature, Tool, VersionRecord};
use crate::export::{Retrained, is_remade};
use crate::model::{self, Trained};

/// The manifest of `old` with another adapter and other heads. Every field is named: whoever adds one to the manifest must say
/// here whether it is still true of the new weights.
pub(super) fn next(
    old: &Bundle,
    made: Retrained,
    trained: &Trained,
    applied: &[SourceRecord],
    number: u32,
) -> Manifest {
    let was = &old.manifest;
    let mut parts = was.parts.clone();
    parts.extend(made.parts.into_iter().map(|p| (p.part.to_string(), p.record)));
    let kept = was.files.iter().filter(|f| !is_remade(&f.name)).cloned();
    let files: Vec<FileRecord> = made.files.into_iter().chain(kept).collect();
    Manifest {
        format: was.format,
        tool: Tool::this(),
        intended_use: was.intended_use.clone(),
        config: was.config.clone(),
        text_model: was.text_model.clone(),
        labels: was.labels.clone(),
        preprocessing: was.preprocessing.clone(),
        tokenizer: was.tokenizer.clone(),
        image_head: trained.image_head,
        parts,
        quantization: made.quantization,
        target: was.target,
        files,
        sources: sources(&was.sources, applied),
        skipped: skipped(&was.skipped, trained),
        version: Some(VersionRecord { number, parent_sha256: old.sha256.clone(), probabilities: made.probabilities }),
        // It was fitted to what the old heads say.
        temperature: Temperature::default(),
    }
}

/// The sources, with what was applied where the old adapter's were.
fn sources(old: &[SourceRecord], applied: &[SourceRecord]) -> Vec<SourceRecord> {
    let of_adapter = |s: &&SourceRecord| s.role == "adapter";
    let at = old.iter().position(|s| of_adapter(&s)).unwrap_or(old.len());
    let rest = |sources: &[SourceRecord]| sources.iter().filter(|s| !of_adapter(s)).cloned().collect::<Vec<_>>();
    [rest(&old[..at]), applied.to_vec(), rest(&old[at..])].concat()
}

/// Tensors that the model does not use. The manifest does not say of which source they were: those with names of the trained
/// part go with the old checkpoint.
fn skipped(old: &[String], trained: &Trained) -> Vec<String> {
    let mut all: Vec<String> = old.iter().filter(|name| !model::is_trained(name)).cloned().collect();
    all.extend(trained.skipped.iter().cloned());
    all.sort();
    all.dedup();
    all
}
