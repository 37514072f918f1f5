//! What is written is read back; what PyTorch makes at random is read as PyTorch reads it; large files stay on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use brain_adapter::checkpoint::{Checkpoint, Requirements, write_safetensors};
use brain_adapter::error::{Code, Error};
use brain_adapter::tensor::{CHUNK_BYTES, DType, LazyTensor, Sink, Source};
use proptest::prelude::*;
use std::sync::Arc;
use support::oracle;
use support::process::alone;

const DTYPES: [DType; 13] = [
    DType::Bool,
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::U32,
    DType::I32,
    DType::U64,
    DType::I64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
];

fn tensor() -> impl Strategy<Value = LazyTensor> {
    (0..DTYPES.len(), prop::collection::vec(0usize..6, 0..4), any::<u8>()).prop_map(|(dtype, shape, seed)| {
        let size = shape.iter().product::<usize>() * DTYPES[dtype].size();
        let bytes: Vec<u8> = (0..size).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
        LazyTensor::new(DTYPES[dtype], shape, Arc::new(bytes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn safetensors_round_trip(
        tensors in prop::collection::btree_map("[a-z.0-9 \"é\\\\]{1,12}", tensor(), 0..12),
        metadata in prop::collection::btree_map("[a-z]{1,5}", "\\PC{0,9}", 0..3),
    ) {
        // Names that a wrapper would have made do not survive, by design.
        let tensors: BTreeMap<String, LazyTensor> =
            tensors.into_iter().map(|(name, t)| (format!("t{name}"), t)).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let size = write_safetensors(&path, tensors.clone(), &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        prop_assert_eq!(size, bytes.len() as u64);
        let found = Checkpoint::open(folder.path()).unwrap();
        prop_assert_eq!(found.metadata(), &metadata);
        prop_assert_eq!(found.len(), tensors.len());
        for (name, want) in &tensors {
            let got = found.get(name).unwrap();
            prop_assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()));
            prop_assert_eq!(got.bytes().unwrap(), want.bytes().unwrap());
        }
        // The reference implementation agrees, and every tensor is aligned to its elements.
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in reference.iter() {
            prop_assert_eq!(view.data(), &*tensors[name].bytes().unwrap());
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            prop_assert_eq!(offset % tensors[name].dtype().size(), 0);
        }
        // Written once more, the file is the same.
        let again = folder.path().join("again.safetensors");
        write_safetensors(&again, found.iter().map(|(n, t)| (n.to_owned(), t.clone())), &metadata).unwrap();
        prop_assert_eq!(std::fs::read(&again).unwrap(), bytes);
    }
}

/// Fails after a few bytes.
struct Broken;

impl Source for Broken {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<(), Error> {
        sink(&[0; 4])?;
        Err(Error::new(Code::CHECKPOINT_VALUE, "no more"))
    }
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write_safetensors(&path, [("a".to_owned(), LazyTensor::from_f32(&[1], &[7.0]))], &BTreeMap::new()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let broken = LazyTensor::new(DType::F32, vec![2], Arc::new(Broken));
    let error = write_safetensors(&path, [("b".to_owned(), broken)], &BTreeMap::new()).unwrap_err();
    assert_eq!((error.code(), error.path()), (Code::CHECKPOINT_VALUE, Some(path.as_path())));
    assert!(error.message().contains("`b`"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let twice =
        [("a".to_owned(), LazyTensor::from_i64(&[1], &[7])), ("a".to_owned(), LazyTensor::from_i64(&[1], &[8]))];
    assert_eq!(write_safetensors(&path, twice, &BTreeMap::new()).unwrap_err().code(), Code::CHECKPOINT_CORRUPT);
    let error = write_safetensors(folder.path().join("no/w"), [], &BTreeMap::new()).unwrap_err();
    assert_eq!(error.code(), Code::IO);
}

/// As many zeros as asked for.
struct Zeros(usize);

impl Source for Zeros {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<(), Error> {
        let zeros = vec![0; CHUNK_BYTES];
        (0..self.0 / CHUNK_BYTES).try_for_each(|_| sink(&zeros))
    }
}

#[test]
#[cfg(target_os = "linux")]
fn streaming_a_large_file_keeps_it_on_disk() {
    alone(module_path!(), "streaming_a_large_file_keeps_it_on_disk", stream_a_large_file);
}

#[cfg(target_os = "linux")]
fn stream_a_large_file() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap().trim().to_owned();
        line.strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let tensor = |_| LazyTensor::new(DType::F16, vec![8192, 8192], Arc::new(Zeros(128 << 20)));
    write_safetensors(&path, (0..3).map(|i| (format!("w{i}"), tensor(i))), &BTreeMap::new()).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    let before = resident();
    let mut most = 0;
    for (name, tensor) in file.iter() {
        // As they are, transposed, and reordered: all three end up in an export.
        let tensor = match name {
            "w0" => tensor.clone(),
            "w1" => tensor.transposed(),
            _ => tensor.rows((0..8192).rev()),
        };
        let mut seen = 0;
        tensor
            .stream(&mut |chunk| {
                seen += chunk.len();
                if name == "w0" {
                    most = most.max(resident());
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, 128 << 20);
        most = most.max(resident());
    }
    assert!(most < before + (40 << 20), "{before} bytes of files resident before, {most} then");
}

/// A checkpoint of any size, every matrix of it transposed: `BA_CHECKPOINT=DIR cargo test --release --test checkpoint
/// any_checkpoint -- --ignored --nocapture`.
#[test]
#[ignore = "needs a checkpoint, named by BA_CHECKPOINT"]
#[cfg(target_os = "linux")]
fn any_checkpoint_streams_in_bounded_memory() {
    let path = std::env::var_os("BA_CHECKPOINT").expect("BA_CHECKPOINT names a checkpoint");
    let started = std::time::Instant::now();
    let file = Checkpoint::open(path).unwrap();
    eprintln!("opened in {:?}: {file:?}", started.elapsed());
    let (mut bytes, mut largest) = (0u64, 0);
    for (_, tensor) in file.iter() {
        largest = largest.max(tensor.byte_len());
        let tensor = if tensor.shape().len() == 2 { tensor.transposed() } else { tensor.clone() };
        tensor
            .stream(&mut |chunk| {
                bytes += chunk.len() as u64;
                Ok(())
            })
            .unwrap();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    eprintln!("{bytes} bytes in {:?}; largest tensor {largest} bytes; {peak}", started.elapsed());
}

/// Random state dicts, saved in every way; prints one folder per case.
const SCRIPT: &str = r#"
import random, sys, torch
from collections import OrderedDict
from pathlib import Path
from safetensors.torch import save_file
out, count = Path(sys.argv[1]), int(sys.argv[2])
r = random.Random(5); torch.manual_seed(5)
D = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
def tensor():
    shape = [r.choice([0, 1, 1, 2, 3, 5, 8]) for _ in range(r.randint(0, 4))]
    t = (torch.rand([s * 2 + 1 for s in shape]) * 9).to(r.choice(D))
    for axis, s in enumerate(shape):
        t = t.narrow(axis, r.randint(0, 1), 2 * s)[(slice(None),) * axis + (slice(None, None, 2),)] if r.random() < .5 else t.narrow(axis, r.randint(0, s), s)
    if r.random() < .4: t = t.permute(r.sample(range(t.dim()), t.dim()))
    if r.random() < .1: t = t.unsqueeze(0).expand(3, *t.shape)
    if r.random() < .3: t = t.contiguous()
    return torch.nn.Parameter(t.detach()) if t.is_floating_point() and r.random() < .3 else t
for i in range(count):
    d = out / str(i); d.mkdir()
    sd = OrderedDict((f"m{k}.w", tensor()) for k in range(r.randint(1, 9)))
    sd["shared"] = next(iter(sd.values()))
    if r.random() < .3: sd._metadata = OrderedDict(v=1)
    obj = {"state_dict": OrderedDict(("module." + k, v) for k, v in sd.items()), "epoch": 3, "log": [1.5, None, {"a": (1, 2)}], "big": 1 << 80} if r.random() < .3 else sd
    save_file({k: v.detach().clone().contiguous() for k, v in sd.items()}, d / "expected.safetensors")
    for p in (1, 2, 3, 4, 5):   # what protocol 0 writes, torch.load refuses too
        torch.save(obj, d / f"zip{p}.pt", pickle_protocol=p)
        torch.save(obj, d / f"legacy{p}.pt", pickle_protocol=p, _use_new_zipfile_serialization=False)
"#;

#[test]
fn random_state_dicts_of_pytorch() {
    let Some(python) = oracle::torch("random state dicts that PyTorch saves") else { return };
    let folder = tempfile::tempdir().unwrap();
    let count = 40;
    let run = Command::new(python).arg("-c").arg(SCRIPT).arg(folder.path()).arg(count.to_string()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for case in 0..count {
        let case = folder.path().join(case.to_string());
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        for entry in std::fs::read_dir(&case).unwrap() {
            same(&entry.unwrap().path(), &expected);
        }
    }
}

fn same(path: &Path, expected: &Checkpoint) {
    let found = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    let all = expected.iter().fold(Requirements::new(), |all, (name, t)| all.require(name, t.shape()));
    let picked = all.pick(&found).unwrap_or_else(|e| panic!("{e}"));
    for (name, got) in &picked.tensors {
        let want = expected.get(name).unwrap();
        assert_eq!(got.dtype(), want.dtype(), "{} {name}", path.display());
        assert_eq!(got.bytes().unwrap(), want.bytes().unwrap(), "{} {name}", path.display());
    }
}
