//! From a bundle and options to graphs with a plan: what happens once, before anything is loaded.

use std::collections::BTreeMap;
use std::path::Path;

use super::Options;
use super::features::Store;
use super::memory::{self, Part, Room, ahead, plan};
use super::stage::Stage;
use crate::bundle::{Bundle, Tool};
use crate::error::{Code, Error, Result};
use crate::model::PARTS;
use crate::onnx::SegmentedModel;
use crate::runtime::{Chosen, Machine, Provider, Runtime, SessionOptions};

/// Bytes beside the grid that reading a scan takes: inflating, blocks of rows, and what a row needs.
const READING: u64 = 24 << 20;

/// The device that is taken for this bundle.
pub(super) fn chosen(_: &Bundle, options: &Options) -> Result<Chosen> {
    let machine = Machine::look(options.device, options.library.as_deref());
    options.device.choose(&machine, &|_| Ok(()))
}

/// What there is to run in.
pub(super) fn room(bundle: &Bundle, options: &Options) -> Room {
    let resident = memory::resident();
    let voxels = (bundle.manifest.config.volume.size as u64).saturating_pow(3);
    // With several scans the next is read while one is computed.
    let scans = if options.expected.scans > 1 && options.threads != Some(1) { 2 } else { 1 };
    let taken = resident.saturating_add(voxels.saturating_mul(4 * scans)).saturating_add(READING);
    let left = || memory::available().saturating_add(resident);
    Room { limit: options.max_memory.unwrap_or_else(left), asked: options.max_memory.is_some(), taken }
}

/// The graphs that will be needed, planned; the peak that is expected; and whether there is room to load ahead.
pub(super) fn stages(
    bundle: &Bundle,
    options: &Options,
    provider: &'static dyn Provider,
    room: &Room,
) -> Result<(BTreeMap<&'static str, Stage>, u64, bool)> {
    let needed = PARTS.iter().copied().filter(|part| *part != "text" || options.expected.reports > 0);
    let read = |part: &'static str| {
        let path = bundle.file(&bundle.manifest.parts[part].file);
        Ok((part, SegmentedModel::read(&path)?, path))
    };
    let models = needed.map(read).collect::<Result<Vec<_>>>()?;
    let tokens = bundle.manifest.tokenizer.max_tokens as u64;
    let parts: Vec<Part<'_>> = models
        .iter()
        .map(|(name, model, _)| Part {
            name,
            model,
            mode: options.mode_of(name),
            extents: BTreeMap::from([("batch", 1), ("tokens", tokens)]),
        })
        .collect();
    let (planned, peak) = plan(&parts, room, options.mode.is_some()).map_err(|e| e.at(&bundle.dir))?;
    let with_ahead = ahead(&parts, &planned, peak, room);
    // Under a limit that was named, memory is to be back before more is taken.
    let beside = options.threads != Some(1) && !room.asked;
    let session = SessionOptions {
        provider,
        strict: options.strict_device,
        placement: options.placement,
        threads: options.threads,
        ..SessionOptions::default()
    };
    let stages = models.iter().zip(planned).map(|((name, model, path), planned)| {
        Ok((*name, Stage::new(name, path.clone(), model, planned, session, beside)?))
    });
    Ok((stages.collect::<Result<_>>()?, with_ahead.unwrap_or(peak), with_ahead.is_some()))
}

/// The store of features: what they depend on beside the input.
pub(super) fn store(cache: &Path, bundle: &Bundle, runtime: &Runtime, device: &str) -> Result<Store> {
    let preprocessing = serde_json::to_string(&bundle.manifest.preprocessing);
    let preprocessing = preprocessing.map_err(|e| Error::new(Code::IO, e.to_string()).at(cache))?;
    let tool = Tool::this();
    Store::open(cache, &[&bundle.model_sha256, &preprocessing, &tool.version, runtime.build, device])
}
