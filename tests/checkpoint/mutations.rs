//! Thousands of damaged copies of small valid files: each loads or fails, none panics, and none takes memory or time
//! out of proportion. The seed is fixed; `BA_MUTATIONS` sets how many are made of each file.

use std::path::Path;

use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::error::Code;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::process::alone;

const FILES: &[&str] = &[
    "extra/adapter.pt2",
    "frameworks/folded.pt",
    "frameworks/lightning_p2.ckpt",
    "frameworks/lightning_p4.ckpt",
    "frameworks/parts.pt",
    "extra/adapter.safetensors",
    "extra/dtypes.safetensors",
    "extra/dtypes_legacy.pt",
    "extra/dtypes_p2.pt",
    "extra/dtypes_p4.pt",
    "extra/wrapped.pt",
    "legacy-pickle/checkpoint_dp_legacy.pt",
];

fn damaged(original: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    // Half of the time near the start, where headers and pickles are.
    let place = |rng: &mut ChaCha8Rng, len: usize| {
        let reach = if rng.random() { len } else { len.min(2500) };
        rng.random_range(0..reach.max(1))
    };
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let at = place(rng, bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.next_u32() as u8,
            2 => bytes[at] = b"\0\x01\x7f\x80\xffRb(tQ"[rng.random_range(0..10)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..(at + rng.random_range(1usize..9)).min(bytes.len()))),
            _ => {
                let end = (at + rng.random_range(1usize..40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = place(rng, bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

#[test]
fn damaged_files_load_or_fail() {
    alone(module_path!(), "damaged_files_load_or_fail", load_or_fail);
}

fn load_or_fail() {
    let count = std::env::var("BA_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint");
    let (mut loaded, mut refused) = (0, 0);
    for (i, name) in FILES.iter().enumerate() {
        let original = std::fs::read(folder.join(name)).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(i as u64);
        for round in 0..count {
            let bytes = damaged(&original, &mut rng);
            let len = bytes.len();
            let started = std::time::Instant::now();
            match Checkpoint::from_bytes(bytes, "damaged") {
                Ok(found) => {
                    loaded += 1;
                    for (tensor_name, tensor) in found.iter() {
                        assert!(tensor.byte_len() <= len.max(16 << 20), "{name} {round} {tensor_name}");
                        // A damaged spectral norm is one that divides by nothing in particular.
                        let read = tensor.stream(&mut |_| Ok(()));
                        let read = read.or_else(|e| if e.code() == Code::CHECKPOINT_VALUE { Ok(()) } else { Err(e) });
                        read.unwrap_or_else(|e| panic!("{name} {round}: {e}"));
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.code().as_str().starts_with("checkpoint."), "{name} {round}: {error}");
                    let line = error.to_string();
                    assert!(!line.contains('\n') && line.len() < 20_000, "{name} {round}: {line}");
                }
            }
            assert!(started.elapsed().as_secs() < 5, "{name} {round} took {:?}", started.elapsed());
        }
    }
    eprintln!("{loaded} loaded, {refused} refused");
    assert!(loaded > 0 && refused > 0);
    // The files have 40 kB at most; an expanded view may stream 16 MB, in chunks of 1 MB.
    if let Some(peak) = peak_memory() {
        assert!(peak < 200 << 20, "{peak} bytes at the peak");
    }
}

/// The peak resident memory of this process in bytes, where the system reports it.
fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? << 10)
}
