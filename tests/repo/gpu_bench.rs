//! What `benches/gpu.sh` is made of, without a GPU: how a process's end is reported, how tensors are compared, and that
//! the tables say what the records say. Needs a Python with numpy, named by `BA_PYTHON` (`make test` does).

#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use brain_adapter::checkpoint::write_safetensors;
use brain_adapter::tensor::LazyTensor;
use serde_json::{Value, json};
use support::oracle;

/// Runs a script of `benches/peers`; none where Python is skipped.
fn script(name: &str, arguments: &[&str]) -> Option<Output> {
    let python = oracle::python("the scripts of benches/gpu.sh")?;
    let script = support::package("benches/peers").join(name);
    Some(Command::new(python).arg("-B").arg(script).args(arguments).output().unwrap())
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What the record of a shell command says, and the exit status that it was given on with.
fn recorded(options: &[&str], command: &str) -> Option<(Value, Option<i32>)> {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("record.json");
    let words = [options, &[record.to_str().unwrap(), "--", "sh", "-c", command]].concat();
    let output = script("gpu_run.py", &words)?;
    Some((read(&record), output.status.code()))
}

#[test]
fn ends_of_processes_are_told() {
    let answer = r#"echo '{"device":"cuda"}'"#;
    let Some((record, status)) = recorded(&["--device", "cuda"], answer) else { return };
    assert_eq!((record["exit"].as_i64(), status, &record["error"]), (Some(0), Some(0), &Value::Null));
    assert_eq!(record["told"], json!([{"device": "cuda"}]));
    assert!(record["answer_s"].as_f64() <= record["seconds"].as_f64());
    let rows = [
        // An answer, and then no clean end.
        (format!("{answer}; kill -ABRT $$"), "SIGABRT", -6),
        ("echo 'error[device.memory]: too little' >&2; exit 1".into(), "exit 1: error[device.memory]: too little", 1),
        (
            r#"echo '{"error":{"code":"device.unavailable","message":"no card"}}'; exit 1"#.into(),
            "device.unavailable: no card",
            1,
        ),
        (r#"echo '{"device":"cpu"}'"#.into(), "asked for cuda, it ran on cpu", 0),
    ];
    for (command, words, exit) in rows {
        let (record, status) = recorded(&["--device", "cuda"], &command).unwrap();
        assert_eq!(record["exit"].as_i64(), Some(exit), "{record}");
        assert!(record["error"].as_str().unwrap().contains(words) && status != Some(0), "{status:?} {record}");
    }
    let (record, _) = recorded(&["--limit", "0.2"], "exec sleep 60").unwrap();
    assert_eq!((record["error"].as_str(), record["signal"].as_str()), (Some("not done within 0.2 s"), Some("SIGKILL")));
}

/// A file as `ba-infer --save-tensors` writes it.
fn save(path: &Path, ids: &[i64], logits: &[f32]) {
    let tensors = [
        ("volume", LazyTensor::from_f32(&[2], &[0.0, 1.0])),
        ("input_ids", LazyTensor::from_i64(&[1, ids.len()], ids)),
        ("attention_mask", LazyTensor::from_i64(&[1, ids.len()], &vec![1; ids.len()])),
        ("logits", LazyTensor::from_f32(&[1, logits.len()], logits)),
    ];
    write_safetensors(path, tensors.map(|(n, t)| (n.to_owned(), t)), &Default::default()).unwrap();
}

#[test]
fn tensors_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let [expected, found, record] = ["a", "b", "record.json"].map(|n| dir.path().join(n));
    let run = |tokens: &str| {
        script(
            "gpu_parity.py",
            &[record.to_str().unwrap(), expected.to_str().unwrap(), found.to_str().unwrap(), tokens],
        )
    };
    save(&expected, &[1, 5, 9], &[3.0, 0.0, 4.0]);
    save(&found, &[1, 5, 9], &[4.0, 0.0, 3.0]);
    let Some(output) = run("3") else { return };
    done(&output);
    let logits = read(&record)["stages"]["logits"].clone();
    assert_eq!(logits, json!({"cosine": 0.96, "max_abs": 1.0, "relative": 0.25}));
    save(&found, &[1, 5, 9], &[4.0, f32::NAN, 3.0]);
    done(&run("3").unwrap());
    assert_eq!(read(&record)["stages"]["logits"]["error"], "1 of 3 values are not finite");
    // Another length than was meant, and other inputs.
    assert!(!run("4").unwrap().status.success());
    save(&found, &[1, 5, 8], &[3.0, 0.0, 4.0]);
    assert!(!run("3").unwrap().status.success());
}

/// Rows of a cohort: the first three slow, the others with these stages.
fn cohort(vision: f64, text: f64, wall: f64) -> Value {
    let row = |factor: f64| {
        json!({"timing_ms": {"adapter": 1.0, "vision": vision * factor, "text": text * factor, "heads": 1.0}, "device": "cuda",
            "run": {"wall_ms": wall * factor, "from_cache": [], "stages": [{"part": "text", "placement": {"providers": [
                {"provider": "CUDAExecutionProvider", "nodes": 20},
                {"provider": "CPUExecutionProvider", "nodes": 1, "left": [{"name": "/a", "kind": "Range"}]}]}}]}})
    };
    json!({"exit": 0, "seconds": 9.0, "told": [row(9.0), row(7.0), row(5.0), row(1.0), row(1.0), row(1.0)]})
}

fn records(folder: &Path) {
    let write = |name: &str, value: Value| fs::write(folder.join(format!("{name}.json")), value.to_string()).unwrap();
    write(
        "model",
        json!({"volume": {"size": 256}, "adapter": {"kind": "bottleneck2d", "in": 256, "out": 64}, "text": {"hidden": 4096},
            "vision": {"patch": [4, 16, 16], "hidden": 768, "mlp": 3072, "layers": 12, "heads": 12},
            "projection": {"dim": 768}, "labels": ["CN", "MCI", "AD"]}),
    );
    write(
        "llama",
        json!({"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32}),
    );
    write("rates", json!({"fp16": {"tflops": 100.0, "size": 8192}, "int8": {"error": "no kernel"}}));
    write("time-cuda-fp16-256", cohort(31.0, 77.0, 90.0));
    write("time-cuda-fp16-512", cohort(31.0, 111.0, 120.0));
    // The same a stage at a time: whose stages count, and not whose whole.
    write("alone-cuda-fp16-256", cohort(20.0, 66.0, 95.0));
    write("alone-cuda-fp16-512", cohort(20.0, 99.0, 125.0));
    write("probe-tensorrt", json!({"exit": 1, "error": "exit 1: device.unavailable: libnvinfer.so.10 | is missing"}));
    write(
        "torch-compile",
        json!({"vision": {"ms": 40.0}, "text 256": {"error": "OutOfMemoryError: 13 GiB"}, "end 256": {"ms": 126.0}}),
    );
    write("torch-compile-again", json!({"vision": {"ms": 30.0}, "end 256": {"ms": 150.0}}));
}

/// The cells of the first row that begins with these.
fn row(table: &str, first: &[&str]) -> Vec<String> {
    let rows = table
        .lines()
        .filter(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let mut found = rows.filter(|cells| cells.iter().zip(first).all(|(cell, start)| cell.starts_with(start)));
    found.next().unwrap_or_else(|| panic!("no row {first:?} in\n{table}")).into_iter().map(str::to_owned).collect()
}

#[test]
fn the_tables_say_what_was_measured_and_what_was_not() {
    let dir = tempfile::tempdir().unwrap();
    records(dir.path());
    let page = dir.path().join("page.md");
    let whole = fs::read_to_string(support::package("docs/gpu.md")).unwrap();
    fs::write(&page, &whole).unwrap();
    let Some(output) = script("gpu_table.py", &[dir.path().to_str().unwrap(), "--write", page.to_str().unwrap()])
    else {
        return;
    };
    let table = done(&output);
    // Milliseconds: the median without the first rows; what is missing, in the tool's own words.
    assert_eq!(
        row(&table, &["ours, cuda-fp16", "1.00"])[1..10],
        ["1.00", "20.0", "66.0", "99.0", "1.00", "88.0", "121", "90.0", "120"]
    );
    assert!(row(&table, &["ours, tensorrt-fp16", "-"])[10].contains("libnvinfer.so.10 / is missing"));
    assert_eq!(row(&table, &["ours, cuda-int8", "-"])[10], "not run");
    assert!(row(&table, &["torch.compile fp16"])[10].contains("OutOfMemoryError: 13 GiB"));
    assert!(row(&table, &["int8"])[1].contains("no kernel"));
    // The better of PyTorch's two measurements is what ours is held against.
    let ratios = row(&table, &["ours, cuda-fp16", "torch.compile"]);
    assert_eq!((&ratios[3][..], &ratios[4][..], &ratios[9][..]), ("1.50", "-", "1.40"));
    assert!(table.contains("differ by at most 25 %"), "{table}");
    // Operations as torch.utils.flop_counter counts them on this model (torch 2.15.0): 11,811,160,064 in the adapter,
    // 1,321,174,339,584 in the ViT, 7,480,320 in the heads, 3,315,714,752,512 in the text's products of 256 tokens,
    // 6,631,429,505,024 of 512; and its attention as far as a causal one needs it.
    assert_eq!(row(&table, &["operations"])[1..6], ["11.8", "1321", "3333", "6700", "0.00748"]);
    let shares = row(&table, &["ours, cuda-fp16 (of fp16)"]);
    assert_eq!((&shares[2][..], &shares[3][..]), ("66.1", "50.5"));
    let goal = |words: &str| row(&table, &[words])[3].clone();
    assert_eq!(goal("cuda-fp16: end to end, 256"), "**not met**");
    assert_eq!((goal("cuda-fp16: vision"), goal("cuda-fp16: end to end, 512")), ("met".into(), "not known".into()));
    assert_eq!(
        row(&table, &["cuda-fp16", "text"])[2],
        "CUDAExecutionProvider 20; CPUExecutionProvider 1: left /a (Range)"
    );
    assert!(table.contains("Exits: 4 of 5 processes ended with status 0."), "{table}");
    // Only what lies between the markers changes.
    let written = fs::read_to_string(&page).unwrap();
    let around = |text: &str| {
        let (before, rest) = text.split_once("<!-- benches/gpu.sh: begin").unwrap();
        (before.to_owned(), rest.split_once("<!-- benches/gpu.sh: end -->").unwrap().1.to_owned())
    };
    assert_eq!(around(&written), around(&whole));
    assert!(written.contains(table.trim_end()));
}
