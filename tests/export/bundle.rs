//! Bundles that were changed, by accident or on purpose, are refused with the right code before ONNX Runtime sees them.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use brain_adapter::Code;
use brain_adapter::bundle::Bundle;
use serde_json::{Value, json};
use support::commands::{
    self, ba_infer, bare, finish, finish_within, manifest, reseal, scan, tiny_bundle, tiny_copy, write_manifest,
};

/// The bundle is refused with `code`, and names `word`.
fn assert_refused(dir: &Path, code: Code, word: &str, what: &str) {
    let error = Bundle::open(dir).map(|_| ()).expect_err(what);
    assert_eq!(error.code(), code, "{what}: {error}");
    assert!(error.to_string().contains(word), "{what}: `{word}` is not named: {error}");
    assert!(!error.to_string().contains('\n'), "{what}: {error}");
}

#[test]
fn a_flipped_truncated_longer_or_missing_file() {
    let names: Vec<String> = commands::names(tiny_bundle());
    assert!(names.contains(&"text.onnx.data".to_owned()) && names.contains(&"tokenizer.json".to_owned()), "{names:?}");
    for name in names.iter().filter(|n| *n != "bundle.json") {
        type Change = fn(&Path, Vec<u8>);
        let changes: [(&str, Change); 6] = [
            ("flipped first bit", |p, mut b| {
                b[0] ^= 1;
                fs::write(p, b).unwrap();
            }),
            ("flipped last bit", |p, mut b| {
                *b.last_mut().unwrap() ^= 128;
                fs::write(p, b).unwrap();
            }),
            ("one byte short", |p, b| fs::write(p, &b[..b.len() - 1]).unwrap()),
            ("empty", |p, _| fs::write(p, b"").unwrap()),
            ("one byte more", |p, b| fs::write(p, [b, vec![0]].concat()).unwrap()),
            ("missing", |p, _| fs::remove_file(p).unwrap()),
        ];
        for (what, change) in changes {
            let dir = tiny_copy();
            let path = dir.path().join(name);
            change(&path, fs::read(&path).unwrap());
            assert_refused(dir.path(), Code::BUNDLE_CHECKSUM, name, &format!("{name}: {what}"));
        }
    }
}

#[test]
fn links_folders_and_pipes_inside() {
    for name in ["tokenizer.json", "text.onnx.data", "heads.onnx"] {
        let dir = tiny_copy();
        let path = dir.path().join(name);
        fs::remove_file(&path).unwrap();
        // The same bytes, elsewhere: still not a file of the bundle.
        std::os::unix::fs::symlink(tiny_bundle().join(name), &path).unwrap();
        assert_refused(dir.path(), Code::BUNDLE_PATH, name, "link");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_refused(dir.path(), Code::BUNDLE_PATH, name, "folder");
        fs::remove_dir(&path).unwrap();
        pipe(&path);
        assert_refused(dir.path(), Code::BUNDLE_PATH, name, "pipe");
    }
    let dir = tiny_copy();
    fs::remove_file(dir.path().join("bundle.json")).unwrap();
    pipe(&dir.path().join("bundle.json"));
    assert_refused(dir.path(), Code::BUNDLE_NOT_FOUND, "bundle", "pipe as manifest");
}

fn pipe(path: &Path) {
    let done = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(done.success());
}

/// A change of the manifest, the code it must give, and a word of the message.
type Edit = (&'static str, fn(&mut Value), Code, &'static str);

const EDITS: &[Edit] = &[
    ("another format", |m| m["format"] = json!(3), Code::BUNDLE_MANIFEST, "format 3"),
    ("text as format", |m| m["format"] = json!("1"), Code::BUNDLE_MANIFEST, "format"),
    ("format 1.0", |m| m["format"] = json!(1.5), Code::BUNDLE_MANIFEST, "format"),
    ("unknown field", |m| m["surprise"] = json!(1), Code::BUNDLE_MANIFEST, "surprise"),
    ("unknown config field", |m| m["config"]["surprise"] = json!(1), Code::BUNDLE_MANIFEST, "surprise"),
    ("unknown precision", |m| m["parts"]["text"]["precision"] = json!("int3"), Code::BUNDLE_MANIFEST, "int3"),
    ("impossible config", |m| m["config"]["volume"]["size"] = json!(0), Code::BUNDLE_MANIFEST, "volume.size"),
    (
        "a million blocks",
        |m| m["config"]["vision"]["layers"] = json!(1_000_000),
        Code::BUNDLE_MANIFEST,
        "vision.layers",
    ),
    ("a million layers", |m| m["text_model"]["layers"] = json!(1_000_000), Code::BUNDLE_MANIFEST, "number of layers"),
    ("no heads", |m| m["text_model"]["kv_heads"] = json!(0), Code::BUNDLE_MANIFEST, "key-value heads"),
    ("labels differ", |m| m["labels"] = json!(["CN", "AD", "MCI"]), Code::BUNDLE_MANIFEST, "labels"),
    ("no labels", |m| m["labels"] = json!([]), Code::BUNDLE_MANIFEST, "labels"),
    ("no parts", |m| m["parts"] = json!({}), Code::BUNDLE_MANIFEST, "adapter"),
    ("a part gone", |m| drop(m["parts"].as_object_mut().unwrap().shift_remove("text")), Code::BUNDLE_MANIFEST, "text"),
    ("no files", |m| m["files"] = json!([]), Code::BUNDLE_MANIFEST, "not listed"),
    ("a file unlisted", |m| drop(m["files"].as_array_mut().unwrap().remove(0)), Code::BUNDLE_MANIFEST, "not listed"),
    ("listed twice", |m| repeat_file(m), Code::BUNDLE_MANIFEST, "twice"),
    ("way up", |m| rename_file(m, "../adapter.onnx"), Code::BUNDLE_PATH, "../adapter.onnx"),
    ("hidden way up", |m| rename_file(m, "x/../adapter.onnx"), Code::BUNDLE_PATH, "x/../adapter.onnx"),
    ("absolute", |m| rename_file(m, "/etc/passwd"), Code::BUNDLE_PATH, "/etc/passwd"),
    ("subfolder", |m| rename_file(m, "sub/adapter.onnx"), Code::BUNDLE_PATH, "sub/adapter.onnx"),
    ("dot", |m| rename_file(m, "./adapter.onnx"), Code::BUNDLE_PATH, "./adapter.onnx"),
    ("trailing slash", |m| rename_file(m, "adapter.onnx/"), Code::BUNDLE_PATH, "adapter.onnx/"),
    ("backslash", |m| rename_file(m, "..\\adapter.onnx"), Code::BUNDLE_PATH, "adapter.onnx"),
    ("empty name", |m| rename_file(m, ""), Code::BUNDLE_PATH, "``"),
    ("the folder itself", |m| rename_file(m, "."), Code::BUNDLE_PATH, "`.`"),
    ("nul", |m| rename_file(m, "a\0b"), Code::BUNDLE_PATH, "plain file name"),
    ("tokenizer elsewhere", |m| m["tokenizer"]["file"] = json!("../t.json"), Code::BUNDLE_PATH, "../t.json"),
    ("tokenizer unlisted", |m| m["tokenizer"]["file"] = json!("t.json"), Code::BUNDLE_MANIFEST, "not listed"),
    ("a lock", |m| rename_file(m, ".lock"), Code::BUNDLE_PATH, "`.lock`"),
    ("a Windows device", |m| rename_file(m, "NUL.onnx"), Code::BUNDLE_PATH, "NUL.onnx"),
    ("a stream of a file", |m| rename_file(m, "adapter.onnx:x"), Code::BUNDLE_PATH, "adapter.onnx:x"),
    ("the manifest itself", |m| rename_file(m, "bundle.json"), Code::BUNDLE_MANIFEST, "which is the manifest"),
    ("two that differ in case", |m| add_file(m, "ADAPTER.onnx"), Code::BUNDLE_MANIFEST, "only in case"),
    (
        "another provider's graph",
        |m| m["parts"]["vision"]["tensorrt"] = json!("../v.onnx"),
        Code::BUNDLE_PATH,
        "../v.onnx",
    ),
    ("negative size", |m| m["files"][0]["bytes"] = json!(-1), Code::BUNDLE_MANIFEST, "-1"),
    ("wrong size", |m| m["files"][0]["bytes"] = json!(7), Code::BUNDLE_CHECKSUM, "adapter.onnx"),
    ("wrong hash", |m| m["files"][0]["sha256"] = json!("00"), Code::BUNDLE_CHECKSUM, "adapter.onnx"),
    ("no tokens", |m| m["tokenizer"]["max_tokens"] = json!(0), Code::BUNDLE_MANIFEST, "max_tokens"),
];

fn repeat_file(m: &mut Value) {
    let first = m["files"][0].clone();
    m["files"].as_array_mut().unwrap().push(first);
}

fn add_file(m: &mut Value, name: &str) {
    let mut first = m["files"][0].clone();
    first["name"] = json!(name);
    m["files"].as_array_mut().unwrap().push(first);
}

fn rename_file(m: &mut Value, name: &str) {
    m["files"][0]["name"] = json!(name);
    m["parts"]["adapter"]["file"] = json!(name);
}

#[test]
fn manifests_that_lie() {
    let good = manifest(tiny_bundle());
    assert_eq!(good["files"][0]["name"], "adapter.onnx", "the edits below take the first file for the adapter's");
    let mut failures = Vec::new();
    for (what, edit, code, word) in EDITS {
        let dir = tiny_copy();
        let mut changed = good.clone();
        edit(&mut changed);
        write_manifest(dir.path(), &changed);
        match Bundle::open(dir.path()) {
            Ok(_) => failures.push(format!("{what}: accepted")),
            Err(e) if e.code() != *code || !e.to_string().contains(word) => {
                failures.push(format!("{what}: {}: {e}", e.code()));
            }
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn manifests_that_are_no_json() {
    let texts: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\"format\"",
        b"{\"format\": 1}",
        b"\xff\xfe{\0}\0",
        b"{\"format\": 1e400}",
        b"\0",
    ];
    for text in texts {
        let dir = tiny_copy();
        fs::write(dir.path().join("bundle.json"), text).unwrap();
        assert_refused(dir.path(), Code::BUNDLE_MANIFEST, "bundle.json", &format!("{text:?}"));
    }
    let dir = tiny_copy();
    fs::write(dir.path().join("bundle.json"), "[".repeat(1 << 20)).unwrap();
    assert_refused(dir.path(), Code::BUNDLE_MANIFEST, "bundle.json", "deep nesting");
    // A sparse file: larger than is ever read, and read it must not be.
    fs::File::create(dir.path().join("bundle.json")).unwrap().set_len(1 << 40).unwrap();
    assert_refused(dir.path(), Code::BUNDLE_MANIFEST, "at most", "giant manifest");
}

/// Patches bytes of `file` and makes the manifest agree, as an attacker would.
fn patched(file: &str, from: &[u8], to: &[u8]) -> tempfile::TempDir {
    assert_eq!(from.len(), to.len());
    let dir = tiny_copy();
    let path = dir.path().join(file);
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<usize> = (0..=bytes.len() - from.len()).filter(|&i| bytes[i..].starts_with(from)).collect();
    assert!(!places.is_empty(), "{file} does not hold {from:?}");
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    fs::write(&path, bytes).unwrap();
    reseal(dir.path());
    dir
}

#[test]
fn external_data_outside_or_unlisted() {
    let rows = [
        ("../x.onnx.data", "not a plain file name"),
        ("/etc/passwd.d.", "not a plain file name"),
        ("sub/.onnx.data", "not a plain file name"),
        ("test.onnx.data", "does not list"),
    ];
    for (location, word) in rows {
        let dir = patched("text.onnx", b"text.onnx.data", location.as_bytes());
        fs::write(dir.path().join("test.onnx.data"), fs::read(dir.path().join("text.onnx.data")).unwrap()).unwrap();
        assert_refused(dir.path(), Code::BUNDLE_PATH, word, location);
        assert_refused(dir.path(), Code::BUNDLE_PATH, location, location);
    }
    // A key that is not `location`: no location at all.
    let dir = patched("text.onnx", b"location", b"locatioN");
    assert_refused(dir.path(), Code::ONNX_INVALID, "no location", "key");
}

/// External data that only a later entry or a less usual message names.
#[test]
fn external_data_in_hiding() {
    let entry = |key: &str, value: &str| message(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let tensor = |entries: &[Vec<u8>]| [entries.concat(), vec![0x70, 1]].concat();
    let outside = tensor(&[entry("location", "../secret")]);
    let twice = tensor(&[entry("location", "text.onnx.data"), entry("location", "../secret")]);
    let address = tensor(&[entry("location", "text.onnx.data"), entry("location", "*/_ORT_MEM_ADDR_/*")]);
    let constant = |attribute: Vec<u8>| message(5, &attribute);
    let node = |attribute: Vec<u8>| constant(attribute);
    let graphs = [
        ("second location", message(7, &message(5, &twice))),
        ("address in memory", message(7, &message(5, &address))),
        ("attribute", message(7, &message(1, &node(message(5, &outside))))),
        ("list of tensors", message(7, &message(1, &node(message(10, &outside))))),
        ("subgraph", message(7, &message(1, &node(message(6, &message(5, &outside)))))),
        ("sparse weight, values", message(7, &message(15, &message(1, &outside)))),
        ("sparse weight, indices", message(7, &message(15, &message(2, &outside)))),
        ("sparse attribute", message(7, &message(1, &node(message(22, &message(1, &outside)))))),
        ("sparse attributes", message(7, &message(1, &node(message(23, &message(1, &outside)))))),
        ("function", message(25, &message(7, &node(message(5, &outside))))),
        ("function's default", message(25, &message(11, &message(5, &outside)))),
        ("training", message(20, &message(1, &message(5, &outside)))),
    ];
    for (what, addition) in graphs {
        let dir = tiny_copy();
        let path = dir.path().join("heads.onnx");
        // A message's fields may be repeated: what is appended is merged into the graph.
        fs::write(&path, [fs::read(&path).unwrap(), addition].concat()).unwrap();
        reseal(dir.path());
        let place = if what == "address in memory" { "_ORT_MEM_ADDR_" } else { "../secret" };
        assert_refused(dir.path(), Code::BUNDLE_PATH, place, what);
    }
}

/// A protobuf field of bytes.
fn field(tag: u32, bytes: &[u8]) -> Vec<u8> {
    let varint = |mut n: usize| {
        let mut out = Vec::new();
        while n > 127 {
            out.push(n as u8 | 128);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    [varint(tag as usize * 8 + 2), varint(bytes.len()), bytes.to_vec()].concat()
}

fn message(tag: u32, bytes: &[u8]) -> Vec<u8> {
    field(tag, bytes)
}

/// The command reports the same, and without ONNX Runtime.
#[test]
fn refused_before_onnx_runtime_is_loaded() {
    let dir = patched("text.onnx", b"text.onnx.data", b"../x.onnx.data");
    let report = commands::report(dir.path());
    let run = |bundle: &Path| {
        let mut command = bare("ba-infer");
        command.env("ORT_DYLIB_PATH", "/nonexistent").arg(scan()).arg("--report").arg(&report);
        finish(command.arg("--bundle").arg(bundle))
    };
    run(dir.path()).fails_with_one_line("bundle.path").naming(&["text.onnx", "../x.onnx.data"]);
    run(tiny_bundle()).fails_with_one_line("runtime.missing");
    run(Path::new("/nonexistent")).fails_with_one_line("bundle.not_found").naming(&["ba-export"]);
}

/// What is no ONNX graph, under a right hash, is ONNX Runtime's to refuse: an error, not a crash.
#[test]
fn graphs_that_are_none() {
    let dir = tiny_copy();
    let report = commands::report(&std::env::temp_dir());
    for bytes in [b"".as_slice(), b"\x08\x09", b"\x3a\x00", &[0xff; 64]] {
        fs::write(dir.path().join("adapter.onnx"), bytes).unwrap();
        reseal(dir.path());
        let mut command = commands::command("ba-infer");
        command.arg(scan()).arg("--report").arg(&report).arg("--bundle").arg(dir.path());
        let done = finish_within(&mut command, 30);
        assert!(done.stderr.contains("adapter.onnx"), "{done:#?}");
        assert!(done.stderr.starts_with("error[onnx.invalid]") || done.stderr.starts_with("error[runtime.model]"));
        assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 1), "{done:#?}");
    }
}

/// The heads of another model: shapes do not fit, which must be an error with the file's name.
#[test]
fn parts_of_different_models() {
    let other = tempfile::tempdir().unwrap();
    commands::write_model(&other.path().join("m"), "tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded");
    let bundle = other.path().join("onnx");
    commands::ba_export(&[&"--model", &other.path().join("m"), &"-o", &bundle]).ok();
    let dir = tiny_copy();
    fs::copy(bundle.join("vision.onnx"), dir.path().join("vision.onnx")).unwrap();
    if bundle.join("vision.onnx.data").exists() {
        fs::copy(bundle.join("vision.onnx.data"), dir.path().join("vision.onnx.data")).unwrap();
    }
    reseal(dir.path());
    let report = commands::report(other.path());
    let done = ba_infer(&[&scan(), &"--report", &report, &"--bundle", &dir.path()]);
    assert_eq!(done.code, Some(1), "{done:#?}");
    assert!(done.stderr.contains("vision.onnx"), "{done:#?}");
}
