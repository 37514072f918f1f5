//! The manifest of a new version of a bundle.

use crate::bundle::{Bundle, FileRecord, Manifest, SourceRecord, Temperature, Tool, VersionRecord};
use crate::export::{Retrained, is_remade};
use crate::model::{self, Part, Trained};

/// The manifest of `old` with another adapter and other heads. Every field is listed: whoever adds a field to the
/// manifest must decide here whether it still holds for the new weights.
pub(super) fn next(
    old: &Bundle,
    retrained: Retrained,
    trained: &Trained,
    applied: &[SourceRecord],
    number: u32,
) -> Manifest {
    let before = &old.manifest;
    let mut parts = before.parts.clone();
    parts.extend(retrained.parts.into_iter().map(|p| (p.part.to_string(), p.record)));
    let kept = before.files.iter().filter(|f| !is_remade(&f.name)).cloned();
    let files: Vec<FileRecord> = retrained.files.into_iter().chain(kept).collect();
    Manifest {
        format: before.format,
        tool: Tool::this(),
        intended_use: before.intended_use.clone(),
        config: before.config.clone(),
        text_model: before.text_model.clone(),
        labels: before.labels.clone(),
        preprocessing: before.preprocessing.clone(),
        tokenizer: before.tokenizer.clone(),
        image_head: trained.image_head,
        parts,
        quantization: retrained.quantization,
        target: before.target,
        files,
        sources: sources(&before.sources, applied),
        skipped: skipped(&before.skipped, trained),
        version: Some(VersionRecord {
            number,
            parent_sha256: old.sha256.clone(),
            probabilities: retrained.probabilities,
        }),
        // It was fitted on predictions of the old heads.
        temperature: Temperature::default(),
    }
}

/// The sources, with `applied` in the place of the old adapter's.
fn sources(old: &[SourceRecord], applied: &[SourceRecord]) -> Vec<SourceRecord> {
    let of_adapter = |s: &&SourceRecord| s.role == Part::Adapter.as_str();
    let at = old.iter().position(|s| of_adapter(&s)).unwrap_or(old.len());
    let rest = |sources: &[SourceRecord]| sources.iter().filter(|s| !of_adapter(s)).cloned().collect::<Vec<_>>();
    [rest(&old[..at]), applied.to_vec(), rest(&old[at..])].concat()
}

/// Tensors that the model does not use. The manifest does not record their source: those with names of trained tensors
/// were of the old checkpoint.
fn skipped(old: &[String], trained: &Trained) -> Vec<String> {
    let mut all: Vec<String> = old.iter().filter(|name| !model::is_trained(name)).cloned().collect();
    all.extend(trained.skipped.iter().cloned());
    all.sort();
    all.dedup();
    all
}
