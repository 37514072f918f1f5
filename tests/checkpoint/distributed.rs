//! Checkpoints of several processes (DCP and ZeRO) load to what PyTorch's and DeepSpeed's own converters make of them,
//! bit for bit: recorded folders in `tests/data/checkpoint/distributed`, and new ones where PyTorch is there.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use brain_adapter::checkpoint::{Checkpoint, Format};
use brain_adapter::error::{Code, Error};
use support::oracle;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint/distributed").join(name)
}

const DCP: [&str; 3] = ["mesh1", "mesh2", "fsdp"];
const ZERO: [&str; 3] = ["zero3", "zero2", "zero1"];

/// The folder holds what its converter made of it.
fn check(folder: &Path, name: &str, format: Format) {
    let found = Checkpoint::open(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e} [{}]", e.code()));
    let expected = Checkpoint::open(folder.join(format!("{name}.safetensors"))).unwrap();
    assert_eq!(found.format(), format);
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
    for (key, want) in expected.iter() {
        let got = found.get(key).unwrap();
        assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{name}: {key}");
        assert_eq!(got.bytes().unwrap(), want.bytes().unwrap(), "{name}: {key}");
    }
}

#[test]
fn recorded_folders_load_bit_for_bit() {
    DCP.iter().for_each(|name| check(&data(""), name, Format::Distributed));
    ZERO.iter().for_each(|name| check(&data(""), name, Format::Zero));
    let found = Checkpoint::open(data("mesh2")).unwrap();
    assert_eq!(found.len(), 12);
    let skipped: Vec<&str> = found.skipped().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(skipped, ["epoch", "optim", "model.steps"]);
    // The metadata, and the four ranks' files.
    assert_eq!(found.files().len(), 5);
    let found = Checkpoint::open(data("zero3")).unwrap();
    assert!(found.warnings()[0].message.contains("3 ranks"), "{:?}", found.warnings());
    check_inner_folder();
}

/// The folder that `latest` names may be given itself.
fn check_inner_folder() {
    let inner = Checkpoint::open(data("zero3/global_step2")).unwrap();
    let outer = Checkpoint::open(data("zero3")).unwrap();
    assert!(inner.names().eq(outer.names()));
}

#[test]
fn new_folders_load_bit_for_bit() {
    let Some(python) = oracle::torch("folders that PyTorch and DeepSpeed save now") else { return };
    let folder = tempfile::tempdir().unwrap();
    let seed = std::process::id().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint/make_distributed.py");
    let done = Command::new(python).arg(script).arg(&seed).arg(folder.path()).output().unwrap();
    assert!(done.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&done.stderr));
    DCP.iter().for_each(|name| check(folder.path(), name, Format::Distributed));
    ZERO.iter().for_each(|name| check(folder.path(), name, Format::Zero));
}

/// The files of a recorded folder.
fn files(name: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(data(name)).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn refusal(files: BTreeMap<String, Vec<u8>>) -> Error {
    let error = Checkpoint::from_files(files, "folder").unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// A copy of a recorded folder on the disk.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files(name) {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn parts_of_a_distributed_checkpoint_are_named() {
    let error = Checkpoint::open(data("mesh1/__0_0.distcp")).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_FORMAT);
    for words in ["distributed checkpoint", "dcp_to_torch", "mesh1"] {
        assert!(error.message().contains(words), "{error}");
    }
    let folder = copy("mesh1");
    std::fs::remove_file(folder.path().join(".metadata")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_NOT_FOUND);
    for words in ["distributed checkpoint", "dcp_to_torch", ".metadata"] {
        assert!(error.message().contains(words), "{error}");
    }
    let mut some = files("mesh2");
    some.remove("__2_0.distcp");
    let error = refusal(some);
    assert_eq!(error.code(), Code::CHECKPOINT_NOT_FOUND);
    assert!(error.message().contains("1 of the 4 files") && error.message().contains("__2_0.distcp"), "{error}");
    let mut cut = files("mesh1");
    cut.get_mut("__2_0.distcp").unwrap().truncate(9000);
    assert_eq!(refusal(cut).code(), Code::CHECKPOINT_TRUNCATED);
}

#[test]
fn ranks_that_are_gone_are_named() {
    for (name, gone, words) in [
        (
            "zero3/global_step2",
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
            "holds 2 files *_optim_states.pt, its 3",
        ),
        ("zero3/global_step2", "zero_pp_rank_2_mp_rank_00_model_states.pt", "holds 2 files *_model_states.pt, its 3"),
        (
            "zero2/global_step2",
            "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "holds 1 files *_optim_states.pt, its 2",
        ),
        ("zero2/global_step2", "mp_rank_00_model_states.pt", "holds no *_model_states.pt"),
    ] {
        let mut some = files(name);
        some.remove(gone).unwrap();
        let error = refusal(some);
        assert_eq!(error.code(), Code::CHECKPOINT_CORRUPT);
        assert!(error.message().contains(words), "{error}");
    }
    // Another rank's file in a rank's place.
    let mut wrong = files("zero3/global_step2");
    let states = files("zero2/global_step2").remove("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unwrap();
    wrong.insert("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt".into(), states);
    assert_eq!(refusal(wrong).code(), Code::CHECKPOINT_CORRUPT);
    let mut tensor = files("zero2/global_step2");
    tensor.insert("mp_rank_01_model_states.pt".into(), vec![1]);
    let error = refusal(tensor);
    assert!(error.message().contains("tensor or expert") && error.message().contains("zero_to_fp32"), "{error}");
}

/// A class that is on no list is refused, and the converter is the way out.
#[test]
fn other_classes_are_refused_with_the_converter() {
    let mut evil = files("mesh1");
    let metadata = evil.get_mut(".metadata").unwrap();
    let at = metadata.windows(11).position(|w| w == b"StorageMeta").unwrap();
    metadata[at..at + 11].copy_from_slice(b"StorageEvil");
    let error = refusal(evil);
    assert_eq!(error.code(), Code::CHECKPOINT_UNSAFE_PICKLE);
    assert!(error.message().contains("StorageEvil") && error.message().contains("dcp_to_torch"), "{error}");
    // And those of the metadata are on no other list.
    let metadata = files("mesh1").remove(".metadata").unwrap();
    let error = Checkpoint::from_bytes(metadata, "m.pt").unwrap_err();
    assert!([Code::CHECKPOINT_UNSAFE_PICKLE, Code::CHECKPOINT_FORMAT].contains(&error.code()), "{error}");
}

/// A tensor's whole size, and for each chunk its offsets, sizes, and where it is said to lie.
type Chunk<'a> = (&'a [i64], &'a [i64], (&'a str, i64, i64));

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn int(out: &mut Vec<u8>, n: i64) {
    out.extend_from_slice(b"\x8a\x08");
    out.extend_from_slice(&n.to_le_bytes());
}

/// The pickle of a `Metadata` with one float32 tensor `w`, by hand.
fn metadata(size: &[i64], chunks: &[Chunk<'_>]) -> Vec<u8> {
    let mut out = b"\x80\x02".to_vec();
    let sizes = |out: &mut Vec<u8>, sizes: &[i64]| {
        out.extend_from_slice(b"ctorch\nSize\n((");
        sizes.iter().for_each(|&n| int(out, n));
        out.extend_from_slice(b"ttR");
    };
    let object = |out: &mut Vec<u8>, module: &str, name: &str| {
        out.extend_from_slice(format!("ctorch.distributed.checkpoint.{module}\n{name}\n)").as_bytes());
        out.extend_from_slice(b"\x81}(");
    };
    object(&mut out, "metadata", "Metadata");
    text(&mut out, "state_dict_metadata");
    out.extend_from_slice(b"}");
    text(&mut out, "w");
    object(&mut out, "metadata", "TensorStorageMetadata");
    text(&mut out, "properties");
    out.extend_from_slice(b"ctorch.distributed.checkpoint.metadata\nTensorProperties\n)\x81(ctorch\nfloat32\ntb");
    text(&mut out, "size");
    sizes(&mut out, size);
    text(&mut out, "chunks");
    out.extend_from_slice(b"](");
    for (offset, size, _) in chunks {
        object(&mut out, "metadata", "ChunkStorageMetadata");
        text(&mut out, "offsets");
        sizes(&mut out, offset);
        text(&mut out, "sizes");
        sizes(&mut out, size);
        out.extend_from_slice(b"ub");
    }
    out.extend_from_slice(b"eubs");
    text(&mut out, "storage_data");
    out.extend_from_slice(b"}(");
    for (offset, _, (file, at, length)) in chunks {
        object(&mut out, "metadata", "MetadataIndex");
        text(&mut out, "fqn");
        text(&mut out, "w");
        text(&mut out, "offset");
        sizes(&mut out, offset);
        out.extend_from_slice(b"ub");
        object(&mut out, "filesystem", "_StorageInfo");
        text(&mut out, "relative_path");
        text(&mut out, file);
        for (name, n) in [("offset", *at), ("length", *length)] {
            text(&mut out, name);
            int(&mut out, n);
        }
        out.extend_from_slice(b"ub");
    }
    out.extend_from_slice(b"uub.");
    out
}

/// An archive of torch.save that holds float32 zeros of this shape.
fn archive(rows: u8, columns: u8) -> Vec<u8> {
    let numel = usize::from(rows) * usize::from(columns);
    let mut pickle = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpuM".to_vec();
    pickle.extend_from_slice(&u16::try_from(numel).unwrap().to_le_bytes());
    pickle.extend_from_slice(&[b't', b'Q', b'K', 0, b'K', rows, b'K', columns, 0x86, b'K', columns, b'K', 1, 0x86]);
    pickle.extend_from_slice(b"\x89}tR.");
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", pickle), ("archive/data/0", vec![0; 4 * numel])] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn hand(size: &[i64], chunks: &[Chunk<'_>], data: &[u8]) -> BTreeMap<String, Vec<u8>> {
    [(".metadata".to_owned(), metadata(size, chunks)), ("d".to_owned(), data.to_vec())].into()
}

#[test]
fn hostile_metadata_is_refused() {
    let data = [archive(2, 3), archive(2, 3)].concat();
    let n = i64::try_from(data.len() / 2).unwrap();
    let good: [Chunk<'_>; 2] = [(&[0, 0], &[2, 3], ("d", 0, n)), (&[2, 0], &[2, 3], ("d", n, n))];
    let found = Checkpoint::from_files(hand(&[4, 3], &good, &data), "f").unwrap();
    assert_eq!(found.get("w").unwrap().to_f32().unwrap(), [0.0; 12]);
    let with = |second: Chunk<'_>| refusal(hand(&[4, 3], &[good[0], second], &data));
    for (second, code, words) in [
        ((&[2, 0][..], &[2, 3][..], ("d", n, n + 1)), Code::CHECKPOINT_TRUNCATED, "expects a chunk"),
        ((&[2, 0], &[2, 3], ("d", i64::MAX, n)), Code::CHECKPOINT_TRUNCATED, "expects a chunk"),
        ((&[2, 0], &[2, 3], ("d", -1, n)), Code::CHECKPOINT_CORRUPT, "a file, an offset and a length"),
        ((&[2, 0], &[2, 3], ("../d", n, n)), Code::CHECKPOINT_CORRUPT, "`../d`"),
        ((&[2, 0], &[2, 3], ("/etc/passwd", n, n)), Code::CHECKPOINT_CORRUPT, "/etc/passwd"),
        ((&[2, 0], &[2, 3], ("e", n, n)), Code::CHECKPOINT_NOT_FOUND, "1 of the 2 files"),
        ((&[3, 0], &[2, 3], ("d", n, n)), Code::CHECKPOINT_CORRUPT, "outside"),
        ((&[1, 0], &[2, 3], ("d", n, n)), Code::CHECKPOINT_CORRUPT, "overlap"),
        ((&[2, 0], &[1, 3], ("d", n, n)), Code::CHECKPOINT_CORRUPT, "expects float32[1, 3]"),
        ((&[2], &[2], ("d", n, n)), Code::CHECKPOINT_CORRUPT, "as many as the tensor has axes"),
        ((&[2, 0], &[2, 3], ("d", 1, n)), Code::CHECKPOINT_TRUNCATED, "zip"),
        ((&[2, -1], &[2, 3], ("d", n, n)), Code::CHECKPOINT_CORRUPT, "chunk"),
    ] {
        let error = with(second);
        assert!(error.message().contains(words), "{words}: {error}");
        assert_eq!(error.code(), code, "{error}");
    }
    // Whole sizes that no chunks fill, and that no memory holds.
    for size in [&[4, 4][..], &[1 << 40, 3], &[i64::MAX, i64::MAX]] {
        assert_eq!(refusal(hand(size, &good, &data)).code(), Code::CHECKPOINT_CORRUPT, "{size:?}");
    }
    // One archive for many chunks: they claim more bytes than there are.
    let offsets: Vec<[i64; 2]> = (0..3).map(|i| [2 * i, 0]).collect();
    let same: Vec<Chunk<'_>> = offsets.iter().map(|o| (&o[..], &[2, 3][..], ("d", 0, n))).collect();
    let error = refusal(hand(&[6, 3], &same, &data));
    assert!(error.message().contains("more bytes than the files have"), "{error}");
}

/// 40,000 chunks are looked at once each, and refused at the first that holds nothing.
#[test]
fn a_list_of_very_many_chunks_takes_no_time() {
    let offsets: Vec<[i64; 1]> = (0..40_000).map(|i| [i]).collect();
    let chunks: Vec<Chunk<'_>> = offsets.iter().map(|o| (&o[..], &[1][..], ("d", 0, 1))).collect();
    let started = std::time::Instant::now();
    let error = refusal(hand(&[40_000], &chunks, b"PK"));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    assert_eq!(error.code(), Code::CHECKPOINT_TRUNCATED, "{error}");
}
