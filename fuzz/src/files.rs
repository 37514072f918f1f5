//! Scans and files of tensors.

use std::collections::BTreeMap;

use brain_adapter::calibrate::Statistics;
use brain_adapter::checkpoint::{Checkpoint, Format, TrainingState};
use brain_adapter::error::Code;
use brain_adapter::volume::{Grid, ReadOptions, read_bytes};

/// A scan: read or refused within bounds, and what is read is finite.
pub fn nifti(data: &[u8]) {
    // The grid's oddest shapes come from the data as well: its last byte.
    let side = 1 + usize::from(data.last().copied().unwrap_or(0) % 12);
    let grid = Grid { shape: [side, 9, 13 - side], voxel_mm: [3.0, 2.0, 5.0] };
    let orientation = (side % 3 == 0).then(|| "LSP".parse().expect("three directions"));
    let options = ReadOptions { grid, orientation, ..ReadOptions::default() };
    if let Ok(conformed) = read_bytes(data, &options) {
        assert!(conformed.voxels.iter().all(|v| v.is_finite()));
        assert!(conformed.min < conformed.max);
        if let Ok(volume) = conformed.normalize(Some([2.0, 98.0])) {
            assert!(volume.voxels.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
}

/// An MGH file: read or refused within bounds; what is read is finite, and a footer, even a cut one, changes nothing.
pub fn mgh(data: &[u8]) {
    let volume = data.last().filter(|_| data.len() % 2 == 1).map(|&n| usize::from(n % 4));
    let options =
        ReadOptions { grid: Grid { shape: [7, 9, 8], voxel_mm: [3.0, 2.0, 5.0] }, volume, ..ReadOptions::default() };
    let Ok(conformed) = read_bytes(data, &options) else { return };
    if conformed.source.format != "MGH" {
        return;
    }
    assert!(conformed.voxels.iter().all(|v| v.is_finite()));
    assert!(conformed.min < conformed.max);
    if !conformed.source.gzip {
        let footer = &data[data.len() / 2..];
        let longer = read_bytes(&[data, footer].concat(), &options).expect("the same file with a longer footer");
        assert!(conformed.voxels == longer.voxels && conformed.warnings == longer.warnings);
    }
}

/// A checkpoint: whatever loads streams as many bytes as its shapes say, and no more than the file or 16 MB.
pub fn checkpoint(data: &[u8]) {
    let Ok(file) = Checkpoint::from_bytes(data.to_vec(), "fuzz") else { return };
    for (name, tensor) in file.iter() {
        assert!(tensor.byte_len() <= data.len().max(16 << 20), "{name}");
        // Expanded views may stream 16 MB from a few bytes: not from every one of a thousand names.
        if tensor.byte_len() <= 1 << 16 {
            let read = tensor.stream(&mut |_| Ok(()));
            // The numbers of a spectral norm may make no sense, which is known once they are read.
            let sensible = read.as_ref().err().is_none_or(|error| error.code() == Code::CHECKPOINT_VALUE);
            assert!(sensible, "a loaded tensor streams: {read:?}");
        }
    }
}

/// The files of a checkpoint of several processes; in an input each is the number of its name, its length (4 bytes) and
/// its bytes.
pub const DCP_FILES: [&str; 11] = [
    ".metadata",
    "__0_0.distcp",
    "__1_0.distcp",
    "__2_0.distcp",
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_model_states.pt",
    "zero_pp_rank_1_mp_rank_00_model_states.pt",
    "zero_pp_rank_2_mp_rank_00_model_states.pt",
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt",
];

/// A distributed checkpoint: whatever loads streams, and a tensor of DCP has no more bytes than the files.
pub fn dcp(data: &[u8]) {
    let (mut files, mut rest) = (BTreeMap::new(), data);
    while let Some((&[number, a, b, c, d], after)) = rest.split_first_chunk::<5>() {
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX).min(after.len());
        let name = DCP_FILES[usize::from(number) % DCP_FILES.len()];
        files.insert(name.to_owned(), after[..len].to_vec());
        rest = &after[len..];
    }
    let Ok(found) = Checkpoint::from_files(files, "fuzz") else { return };
    for (name, tensor) in found.iter() {
        assert!(found.format() == Format::Zero || tensor.byte_len() <= data.len(), "{name}");
        if tensor.byte_len() <= 1 << 16 {
            tensor.stream(&mut |_| Ok(())).expect("a loaded tensor streams");
        }
    }
}

/// Calibration statistics: whatever loads holds finite numbers, and as many of one kind as of the other.
pub fn statistics(data: &[u8]) {
    let Ok(file) = Checkpoint::from_bytes(data.to_vec(), "fuzz") else { return };
    let Ok(statistics) = Statistics::from_checkpoint(&file) else { return };
    for columns in statistics.activations.values() {
        assert!(columns.tokens > 0 && columns.max_abs.len() == columns.moment.len());
        assert!(columns.importance().iter().all(|i| i.is_finite() && *i >= 0.0));
        assert!(columns.zero_point() > 0);
    }
}

/// A training checkpoint: whatever loads streams, all together no more than twice the file.
pub fn training_checkpoint(data: &[u8]) {
    let Ok(state) = TrainingState::from_bytes(data.to_vec(), "fuzz") else { return };
    let moments = state.optimizer.iter().flat_map(|o| o.moments.values()).flat_map(|m| [&m.first, &m.second]);
    let mut total = 0;
    for tensor in state.trainable.values().chain(state.frozen.values()).chain(moments) {
        let count = &mut |chunk: &[u8]| {
            total += chunk.len();
            Ok(())
        };
        tensor.stream(count).expect("a loaded tensor streams");
    }
    assert!(total <= 2 * data.len());
}
