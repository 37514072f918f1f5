//! Files made to do harm, and files that are none: an error with the right code, one line, naming the file; nothing
//! run.

use std::path::{Path, PathBuf};

use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::error::Code;
use support::oracle;

/// File, code and words of the message; `None` for files that load (what is wrong with them shows later).
const FILES: &[(&str, Option<(Code, &str)>)] = &[
    ("good.pt", None),
    ("inf_weight.pt", None),
    ("nan_weight.pt", None),
    ("negative_variance.pt", None),
    ("missing_tensor.pt", None),
    ("wrong_shape.pt", None),
    ("unknown_tensor.pt", None),
    ("evil_reduce.pt", Some((Code::CHECKPOINT_UNSAFE_PICKLE, "`posix.system`"))),
    ("evil_reduce_legacy.pt", Some((Code::CHECKPOINT_UNSAFE_PICKLE, "`posix.system`"))),
    ("evil_bare_pickle.bin", Some((Code::CHECKPOINT_UNSAFE_PICKLE, "`builtins.eval`"))),
    ("truncated.pt", Some((Code::CHECKPOINT_TRUNCATED, "zip archive"))),
    ("empty.pt", Some((Code::CHECKPOINT_TRUNCATED, "empty"))),
    ("not_a_checkpoint.pt", Some((Code::CHECKPOINT_FORMAT, "HTML"))),
    ("lfs_pointer.bin", Some((Code::CHECKPOINT_FORMAT, "Git LFS"))),
    ("short_storage.pt", Some((Code::CHECKPOINT_CORRUPT, "bytes, expected"))),
    ("missing_storage.pt", Some((Code::CHECKPOINT_CORRUPT, "is missing"))),
    ("offset_past_end.pt", Some((Code::CHECKPOINT_CORRUPT, "`adapter.residual.conv1.weight`"))),
    ("overlap.safetensors", Some((Code::CHECKPOINT_CORRUPT, "offset"))),
    ("hole.safetensors", Some((Code::CHECKPOINT_CORRUPT, "offset"))),
    ("out_of_range.safetensors", Some((Code::CHECKPOINT_CORRUPT, "shape"))),
    ("reversed_offsets.safetensors", Some((Code::CHECKPOINT_CORRUPT, "offset"))),
    ("size_mismatch.safetensors", Some((Code::CHECKPOINT_CORRUPT, "shape"))),
    ("shape_overflow.safetensors", Some((Code::CHECKPOINT_CORRUPT, "overflow"))),
    ("header_2e60.safetensors", Some((Code::CHECKPOINT_CORRUPT, "1152921504606846976"))),
    ("unknown_dtype.safetensors", Some((Code::CHECKPOINT_CORRUPT, "F77"))),
    ("tiny_file.safetensors", Some((Code::CHECKPOINT_TRUNCATED, "3 bytes"))),
];

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn check(folder: &Path) -> usize {
    let mut seen = 0;
    for &(name, want) in FILES {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        seen += 1;
        match (Checkpoint::open(&path), want) {
            (Ok(found), None) => assert!(found.len() >= 26, "{name}"),
            (Err(error), Some((code, words))) => {
                let line = error.to_string();
                assert_eq!(error.code(), code, "{line}");
                assert!(line.contains(words) && line.contains(name) && !line.contains('\n'), "{line}");
            }
            (found, want) => panic!("{name}: {found:?}, expected {want:?}"),
        }
    }
    seen
}

#[test]
fn hostile_files_are_refused_by_name() {
    assert_eq!(check(&root("tests/data/checkpoint/hostile")), 19);
    if let Some(all) = oracle::shared("fixtures/hostile") {
        assert_eq!(check(&all), FILES.len());
        let found = Checkpoint::open(all.join("nan_weight.pt")).unwrap();
        let weight =
            found.get("adapter.residual.conv1.weight").unwrap().checked_finite("adapter.residual.conv1.weight");
        assert_eq!(weight.to_f32().unwrap_err().code(), Code::CHECKPOINT_NONFINITE);
    }
    assert!(!Path::new("PWNED").exists() && !root("PWNED").exists());
}

#[test]
fn pipes_and_devices_are_not_opened() {
    #[cfg(unix)]
    {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("adapter.pt");
        // Without a writer, opening it would wait for ever.
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        if made.is_ok_and(|s| s.success()) {
            assert_eq!(Checkpoint::open(&pipe).unwrap_err().code(), Code::CHECKPOINT_FORMAT);
        } else {
            oracle::not_here("no mkfifo", "a named pipe in place of a checkpoint");
        }
        assert_eq!(Checkpoint::open("/dev/zero").unwrap_err().code(), Code::CHECKPOINT_FORMAT);
    }
}

/// A legacy file around a hand-made object pickle, without storages.
fn legacy(object: &[u8]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend_from_slice(object);
    file.extend_from_slice(b"\x80\x02].");
    file
}

fn refusal(object: &[u8]) -> (Code, String) {
    let error = Checkpoint::from_bytes(legacy(object), "hand.pt").unwrap_err();
    assert!(!error.to_string().contains('\n'));
    (error.code(), error.to_string())
}

#[test]
fn every_way_to_name_a_global_is_refused() {
    let evil: &[(&[u8], &str)] = &[
        (b"cposix\nsystem\n.", "`posix.system`"),
        (b"}X\x01\0\0\0acos\nsystem\nX\x02\0\0\0id\x85Rs.", "`os.system`"),
        (b"\x8c\x08builtins\x8c\x04exec\x93.", "`builtins.exec`"),
        (b"(iposix\nsystem\n.", "`posix.system`"),
        (b"(cposix\nsystem\no.", "`posix.system`"),
        (b"ctorch\nload\n.", "`torch.load`"),
        (b"ctorch.hub\nload\n.", "`torch.hub.load`"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "`numpy.core.multiarray.fromfile`"),
        (b"c__builtin__\ngetattr\n.", "`__builtin__.getattr`"),
        (b"ccopyreg\n_reconstructor\n.", "`copyreg._reconstructor`"),
        (b"\x82\x01.", "extension code 1"),
        (b"\x83\x01\x02.", "extension code 513"),
        (b"\x84\x01\0\0\0.", "extension code 1"),
    ];
    for (object, words) in evil {
        let (code, line) = refusal(object);
        assert_eq!(code, Code::CHECKPOINT_UNSAFE_PICKLE, "{line}");
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn malformed_pickles_are_refused() {
    let torch = b"ctorch._utils\n_rebuild_tensor_v2\n";
    let persistent = |numel: &[u8], rest: &[u8]| {
        let head: &[u8] = b"}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpu";
        [head, numel, b"NtQ", rest, b"tRs."].concat()
    };
    let cases: Vec<Vec<u8>> = vec![
        b".".to_vec(),
        b"0.".to_vec(),
        b"R.".to_vec(),
        b"t.".to_vec(),
        b"(.".to_vec(),
        b"}(X\x01\0\0\0au.".to_vec(),
        b"NNs.".to_vec(),
        b"Na.".to_vec(),
        b"h\x05.".to_vec(),
        b"Pabc\n.".to_vec(),
        b"X\x01\0\0\0aQ.".to_vec(),
        b"\x80\x09.".to_vec(),
        b"\x97.".to_vec(),
        b"I12x\n.".to_vec(),
        b"L--1L\n.".to_vec(),
        b"Sopen\n.".to_vec(),
        b"V\\ud800\n.".to_vec(),
        b"NNb.".to_vec(),
        // What lies below an open mark is not to be taken.
        b"](Na1.".to_vec(),
        b"}(X\x01\0\0\0aNs1.".to_vec(),
        [&torch[..], b"}b."].concat(),
        [&torch[..], b")R."].concat(),
        [&torch[..], b"(NK\x00))tR."].concat(),
        b"ctorch\nFloatStorage\n)R.".to_vec(),
    ];
    for object in cases {
        let (code, line) = refusal(&object);
        let text = String::from_utf8_lossy(&object);
        let bad = [Code::CHECKPOINT_CORRUPT, Code::CHECKPOINT_FORMAT].contains(&code);
        assert!(bad, "{line} [{code}] {text:?}");
        assert!(!object.ends_with(b"1.") || code == Code::CHECKPOINT_CORRUPT, "{line} [{code}] {text:?}");
    }
    for (numel, rest, words) in [
        (&b"J\xff\xff\xff\xff"[..], &b"K\x00))"[..], "persistent id"),
        (b"K\x04", b"J\xff\xff\xff\xff))", "offset"),
        (b"K\x04", b"K\x00K\x04\x85)", "shape and strides"),
        (
            b"K\x04",
            b"K\x00(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t2",
            "up to 16",
        ),
        (b"K\x04", b"K\x00K\x04\x85K\x01\x85", "not in the file"),
    ] {
        let (code, line) = refusal(&persistent(numel, rest));
        assert!(code == Code::CHECKPOINT_CORRUPT && line.contains(words), "{line}");
    }
    // No tensors is a matter of format; the state of a cyclic dict is none.
    for object in [&b"}."[..], b"].", b"N.", b"}q\0X\x05\0\0\0modelh\0s.", b"]q\0h\0a.", b"(lp0\ng0\na."] {
        assert_eq!(refusal(object).0, Code::CHECKPOINT_FORMAT);
    }
}

#[test]
fn claims_of_size_allocate_nothing() {
    let started = std::time::Instant::now();
    let truncated: &[&[u8]] = &[
        b"X\xff\xff\xff\xff.",
        b"B\xff\xff\xff\x7f.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x8e\0\0\0\0\0\0\0\x40.",
        b"\x8b\xff\xff\xff\x7f.",
        b"cposix",
        b"K",
        b"",
    ];
    for object in truncated {
        let file = &legacy(object)[..legacy(object).len() - 4];
        let error = Checkpoint::from_bytes(file.to_vec(), "hand.pt").unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_TRUNCATED, "{error}");
    }
    // Deep nesting: a million lists in lists, a million tuples in tuples, a million marks; and it drops, too.
    for (push, close) in [(&b"]"[..], &b"a"[..]), (b")", b"\x85"), (b"(", b"t")] {
        let deep = [push.repeat(1_000_000), close.repeat(999_999), b".".to_vec()].concat();
        let _ = Checkpoint::from_bytes(legacy(&deep), "deep.pt").unwrap_err();
    }
    // Lists of the list before, ten times each: 10^100000 items if they were copied.
    let bomb =
        [b"(l".to_vec(), b"q\x00(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00l".repeat(100_000), b".".to_vec()]
            .concat();
    let _ = Checkpoint::from_bytes(legacy(&bomb), "bomb.pt").unwrap_err();
    // A long list copied again and again through a constructor.
    let copies = [
        b"(".to_vec(),
        b"N".repeat(100_000),
        b"lq\x00".to_vec(),
        b"ctorch\nSize\nh\x00\x85R".repeat(10_000),
        b".".to_vec(),
    ]
    .concat();
    let (code, line) = refusal(&copies);
    assert!(code == Code::CHECKPOINT_CORRUPT && line.contains("copies"), "{line}");
    // More objects than any checkpoint has.
    let (code, line) = refusal(&[b"}".repeat(5 << 20), b".".to_vec()].concat());
    assert!(code == Code::CHECKPOINT_CORRUPT && line.contains("objects"), "{line}");
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn an_index_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let good = root("tests/data/checkpoint/extra/adapter.safetensors");
    std::fs::copy(&good, folder.path().join("a.safetensors")).unwrap();
    let absolute = good.to_string_lossy().into_owned();
    for (shard, code) in [
        ("../x.safetensors", Code::CHECKPOINT_CORRUPT),
        (absolute.as_str(), Code::CHECKPOINT_CORRUPT),
        ("sub/../../x.safetensors", Code::CHECKPOINT_CORRUPT),
        ("sub/gone.safetensors", Code::CHECKPOINT_NOT_FOUND),
        ("..", Code::CHECKPOINT_CORRUPT),
        ("", Code::CHECKPOINT_CORRUPT),
    ] {
        std::fs::write(&index, serde_json::json!({"weight_map": {"logit_scale": shard}}).to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(error.path(), Some(index.as_path()), "{error}");
    }
    std::fs::write(&index, r#"{"weight_map": {"nothing": "a.safetensors"}}"#).unwrap();
    assert!(Checkpoint::open(&index).unwrap_err().message().contains("`nothing`"));
    std::fs::write(&index, r#"{"weight_map": {"logit_scale": "a.safetensors"}}"#).unwrap();
    let found = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found.skipped().iter().any(|s| s.name == "reduce.bias"));
}

#[test]
fn safetensors_offsets_near_the_end_of_the_address_space() {
    // Twelve tensors of 2^60 bytes and more add up past 2^64.
    let mut entries = serde_json::Map::new();
    let mut at = 0u64;
    for i in 0..15u64 {
        let end = at + (1 << 60);
        entries.insert(
            format!("t{i}"),
            serde_json::json!({"dtype": "U8", "shape": [1u64 << 60], "data_offsets": [at, end]}),
        );
        at = end;
    }
    let last = u64::MAX;
    entries.insert("u".into(), serde_json::json!({"dtype": "U8", "shape": [last - at], "data_offsets": [at, last]}));
    let header = serde_json::Value::Object(entries).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 7]].concat();
    let error = Checkpoint::from_bytes(file, "huge.safetensors").unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_TRUNCATED, "{error}");
}

#[test]
fn shared_entries_take_no_quadratic_time() {
    let started = std::time::Instant::now();
    // Dicts of 200,000 entries `model`, each of them the next such dict.
    let mut nested = b"}q\x01X\x05\0\0\0modelq\x0000".to_vec();
    for i in 1..6u8 {
        nested.extend_from_slice(b"}q");
        nested.push(i + 1);
        nested.push(b'(');
        nested.extend_from_slice(&[b'h', 0, b'h', i].repeat(200_000));
        nested.extend_from_slice(b"u0");
    }
    nested.extend_from_slice(b"h\x06.");
    assert_eq!(refusal(&nested).0, Code::CHECKPOINT_FORMAT);
    // A name of 2 MB, of 200,000 entries.
    let long = [
        b"X\x80\x84\x1e\0".to_vec(),
        vec![b'x'; 2_000_000],
        b"q\x000}(".to_vec(),
        b"h\x00N".repeat(200_000),
        b"u.".to_vec(),
    ]
    .concat();
    assert_eq!(refusal(&long).0, Code::CHECKPOINT_FORMAT);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
#[cfg(unix)]
fn a_large_truncated_archive_is_refused_at_once() {
    // 8 GB, all but the first bytes a hole.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let good = std::fs::read(root("tests/data/checkpoint/extra/dtypes_p2.pt")).unwrap();
    std::fs::write(&path, &good[..4000]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 << 30).unwrap();
    let started = std::time::Instant::now();
    let error = Checkpoint::open(&path).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_TRUNCATED, "{error}");
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn big_endian_files_are_refused() {
    let read = |name: &str| std::fs::read(root("tests/data/checkpoint/extra").join(name)).unwrap();
    let replaced = |name: &str, from: &[u8], to: &[u8]| {
        let mut bytes = read(name);
        // The last one: an export archive holds another archive, that of its sample inputs.
        let at = bytes.windows(from.len()).rposition(|w| w == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        Checkpoint::from_bytes(bytes, name).unwrap_err()
    };
    for error in [
        replaced("dtypes_p2.pt", b"little", b"big   "),
        replaced("adapter.pt2", b"little", b"big   "),
        replaced("dtypes_legacy.pt", b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    ] {
        assert!(error.code() == Code::CHECKPOINT_FORMAT && error.message().contains("big-endian"), "{error}");
    }
    // As in Python, the last value of a key counts.
    let order = |values: [&[u8]; 2]| {
        let key = b"X\x0d\0\0\0little_endian";
        let info = [&b"\x80\x02}("[..], key, values[0], key, values[1], b"u."].concat();
        let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
        file.extend([&info[..], b"}.", b"\x80\x02]."].concat());
        Checkpoint::from_bytes(file, "hand.pt").unwrap_err().message().contains("big-endian")
    };
    assert!(order([b"\x88", b"\x89"]) && !order([b"\x89", b"\x88"]));
}

/// A legacy file with one storage `0` of four floats. `function` rebuilds the tensor `a` from it; `view` and `rest` are
/// the end of its persistent id and the arguments after it.
fn one_storage(function: &str, numel: u8, view: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend(b"\x80\x02}X\x01\0\0\0actorch._utils\n");
    file.extend(function.as_bytes());
    file.extend(b"\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpuK");
    file.push(numel);
    file.extend([view, b"tQ", rest, b"tRs.", b"\x80\x02]X\x01\0\0\0\x30a."].concat());
    file.extend(4u64.to_le_bytes());
    (1..=4u8).for_each(|i| file.extend(f32::from(i).to_le_bytes()));
    file
}

#[test]
fn a_storage_is_what_the_pickle_says_of_it() {
    let open = |function, numel, view: &[u8], rest: &[u8]| {
        Checkpoint::from_bytes(one_storage(function, numel, view, rest), "hand.pt")
    };
    let v2 = "_rebuild_tensor_v2";
    let all = b"K\x00K\x04\x85K\x01\x85";
    let values = |file: &Checkpoint| file.get("a").unwrap().to_f32().unwrap();
    assert_eq!(values(&open(v2, 4, b"N", all).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    for numel in [0, 3, 5] {
        let error = open(v2, numel, b"N", all).unwrap_err();
        assert!(error.code() == Code::CHECKPOINT_CORRUPT && error.message().contains("elements of 4"), "{error}");
    }
    // A view: its key, offset and size.
    let two = b"K\x00K\x02\x85K\x01\x85";
    assert_eq!(values(&open(v2, 4, b"(X\x01\0\0\0vK\x02K\x02t", two).unwrap()), [3.0, 4.0]);
    for view in [&b"(X\x01\0\0\0vK\x02K\x03t"[..], b"(X\x01\0\0\0vK\x05K\x00t"] {
        let error = open(v2, 4, view, two).unwrap_err();
        assert!(error.code() == Code::CHECKPOINT_CORRUPT && error.message().contains("past its end"), "{error}");
    }
    // Version 3 names a type of its own, whatever the storage's is.
    let file = open("_rebuild_tensor_v3", 4, b"N", b"K\x00K\x04\x85K\x01\x85\x89Nctorch\nint32\n").unwrap();
    assert_eq!(file.get("a").unwrap().dtype(), brain_adapter::tensor::DType::I32);
    // A rebuild function inside another one is a tensor's.
    let (code, line) =
        refusal(b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)NtR.");
    assert!(code == Code::CHECKPOINT_CORRUPT && line.contains("other than a tensor"), "{line}");
}
