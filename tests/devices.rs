//! Which device is taken on machines that are not there, and what is said of what is missing. No GPU is needed or used.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod commands;
#[path = "devices/fake.rs"]
mod fake;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use brain_adapter::Code;
use brain_adapter::runtime::{Chosen, Device, Gpu, Machine, Nvidia, Runtime, SHAPES, Session, SessionOptions};
use commands::{Done, bare, finish, library, scan, tiny_bundle};
use fake::{CUDA, CUDA_PROVIDER, RTX, RTX_PROVIDER, TENSORRT, TENSORRT_PROVIDER, gpu_build, put_back, take};
use prost::Message;

/// The little of ONNX's `ModelProto` that counts nodes.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "4")]
    kind: String,
    #[prost(string, tag = "7")]
    domain: String,
}

/// A machine with a GPU of that compute capability, and the libraries in `folder` alone.
fn machine(capability: (u32, u32), folder: &Path) -> Machine {
    let gpu = Gpu {
        name: "Imagined 4000".to_owned(),
        capability,
        memory: 16 << 30,
        free: 15 << 30,
        uuid: "GPU-1".to_owned(),
    };
    Machine {
        nvidia: Ok(Nvidia { driver: "580.65.06".to_owned(), cuda: (13, 0), gpus: vec![gpu] }),
        library: None,
        loaded: None,
        folders: vec![folder.join("nowhere"), folder.to_path_buf()],
        system_loader: false,
        refused: Vec::new(),
        installed: true,
        notes: Vec::new(),
    }
}

fn choose(device: Device, machine: &Machine) -> brain_adapter::Result<Chosen> {
    device.choose(machine, &|_| Ok(()))
}

/// The device, and what was passed over for it.
fn taken(machine: &Machine) -> (&'static str, Vec<&'static str>) {
    let chosen = choose(Device::Auto, machine).unwrap();
    (chosen.provider.name(), chosen.passed_over.iter().map(|passed| passed.device).collect())
}

/// The message of a device that cannot be used.
fn refusal(device: Device, machine: &Machine) -> String {
    let error = choose(device, machine).unwrap_err();
    assert_eq!(error.code(), Code::DEVICE_UNAVAILABLE);
    let message = error.to_string();
    assert!(message.starts_with(&format!("device `{device}` cannot be used: ")), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

#[track_caller]
fn names(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[test]
fn auto_takes_the_best_that_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    gpu_build(folder);
    let all = ["tensorrt", "tensorrt-rtx", "cuda"];
    assert_eq!(taken(&machine((8, 6), folder)), ("tensorrt", vec![]));
    assert_eq!(taken(&machine((9, 0), folder)), ("tensorrt", vec![]));
    take(folder, "libnvinfer.so.10");
    assert_eq!(taken(&machine((8, 6), folder)), ("tensorrt-rtx", all[..1].to_vec()));
    for capability in [(8, 9), (12, 0), (12, 1), (13, 0)] {
        assert_eq!(taken(&machine(capability, folder)).0, "tensorrt-rtx", "{capability:?}");
    }
    // The plugin takes neither data-centre cards nor Turing.
    for capability in [(7, 5), (8, 0), (8, 7), (9, 0), (10, 0)] {
        assert_eq!(taken(&machine(capability, folder)), ("cuda", all[..2].to_vec()), "{capability:?}");
    }
    take(folder, RTX_PROVIDER);
    assert_eq!(taken(&machine((8, 6), folder)), ("cuda", all[..2].to_vec()));
    take(folder, CUDA_PROVIDER);
    let chosen = choose(Device::Auto, &machine((8, 6), folder)).unwrap();
    assert_eq!((chosen.provider.name(), chosen.gpu, chosen.library), ("cpu", None, None));
    // There is a driver: it is said without -v that the GPU is not used, and why.
    let chosen = choose(Device::Auto, &machine((8, 6), folder)).unwrap();
    let told = chosen.told(false);
    assert_eq!(told.len(), 2, "{told:?}");
    names(&told.join("\n"), &["auto took cpu", "not cuda: there is no GPU's build of ONNX Runtime", "make gpu"]);
    assert_eq!(chosen.told(true).len(), 4);
    let none = Machine { nvidia: Err("there is no driver".to_owned()), installed: false, ..machine((8, 6), folder) };
    let chosen = choose(Device::Auto, &none).unwrap();
    assert_eq!(chosen.told(false), [""; 0]);
    let expected = ["device: auto took cpu", "device: not tensorrt, tensorrt-rtx, cuda: there is no driver"];
    assert_eq!(chosen.told(true), expected);
}

#[test]
fn what_is_chosen_is_told() {
    let dir = tempfile::tempdir().unwrap();
    gpu_build(dir.path());
    let machine = Machine { notes: vec!["which is first?".to_owned()], ..machine((8, 6), dir.path()) };
    let chosen = choose(Device::Cuda, &machine).unwrap();
    assert_eq!(chosen.to_string(), "cuda (Imagined 4000, driver 580.65.06)");
    assert_eq!(chosen.library.as_deref(), Some(dir.path().join("libonnxruntime.so").as_path()));
    assert_eq!(chosen.told(false), ["device: which is first?"]);
    let expected = serde_json::json!({
        "asked": "cuda", "device": "cuda", "driver": "580.65.06", "passed_over": [], "notes": ["which is first?"],
        "gpu": {"name": "Imagined 4000", "compute_capability": "8.6", "memory_bytes": 16u64 << 30,
                "free_bytes": 15u64 << 30},
    });
    assert_eq!(serde_json::to_value(&chosen).unwrap(), expected);
    let chosen = choose(Device::Cpu, &machine).unwrap();
    assert_eq!((chosen.to_string().as_str(), chosen.told(true).len(), chosen.gpu), ("cpu", 0, None));
}

/// Each library of each provider, taken away alone: its name, what it is, and what to install.
#[test]
fn each_missing_library_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    gpu_build(folder);
    take(folder, RTX_PROVIDER);
    let machine = machine((8, 6), folder);
    let classic: Vec<(&str, &str)> = CUDA.into_iter().chain(TENSORRT).collect();
    for (device, needed) in [(Device::Cuda, CUDA.as_slice()), (Device::TensorRt, &classic)] {
        choose(device, &machine).unwrap();
        for (name, what) in needed {
            take(folder, name);
            let advice = if what.starts_with("TensorRT") { "from NVIDIA" } else { "" };
            let advice = if *what == "driver" { "NVIDIA's driver, 580" } else { advice };
            let advice = if advice.is_empty() { "make gpu" } else { advice };
            names(&refusal(device, &machine), &[name, what, advice, "is missing"]);
            put_back(folder, name);
        }
    }
    put_back(folder, RTX_PROVIDER);
    for (name, what) in RTX {
        choose(Device::TensorRtRtx, &machine).unwrap();
        take(folder, name);
        names(&refusal(Device::TensorRtRtx, &machine), &[name, what, "is missing"]);
        put_back(folder, name);
    }
    // Several at once, in one line.
    take(folder, "libcudnn.so.9");
    take(folder, "libcublas.so.13");
    let both = "libcublas.so.13 (cuBLAS 13; on PyPI nvidia-cublas), libcudnn.so.9 (cuDNN 9; on PyPI nvidia-cudnn-cu13) are \
                missing: run `make gpu`";
    names(&refusal(Device::Cuda, &machine), &[both]);
}

#[test]
fn a_library_that_does_not_load_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    gpu_build(folder);
    let damaged = [("libcurand.so.10", "too short"), ("libcudnn_cnn.so.9", "ELF")];
    for (name, reason) in damaged {
        take(folder, name);
        fs::write(folder.join(name), if reason == "ELF" { vec![b'x'; 5000] } else { Vec::new() }).unwrap();
        let message = refusal(Device::Cuda, &machine((8, 6), folder));
        names(&message, &[&folder.join(name).display().to_string(), "does not load", reason, "again"]);
        fs::remove_file(folder.join(name)).unwrap();
        put_back(folder, name);
    }
}

#[test]
fn what_comes_before_libraries() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    gpu_build(folder);
    let good = machine((8, 6), folder);
    let nvidia = good.nvidia.clone().unwrap();
    let with = |change: fn(&mut Nvidia)| {
        let mut nvidia = nvidia.clone();
        change(&mut nvidia);
        Machine { nvidia: Ok(nvidia), ..good.clone() }
    };
    let old = with(|n| (n.driver, n.cuda, n.gpus) = ("535.154.05".to_owned(), (12, 2), Vec::new()));
    let none = with(|n| n.gpus.clear());
    let volta = with(|n| n.gpus[0].capability = (7, 0));
    for device in [Device::Cuda, Device::TensorRt] {
        names(&refusal(device, &old), &["driver 535.154.05 is too old", "CUDA 12.2", "13.0 is needed", "580"]);
        names(&refusal(device, &none), &["580.65.06 finds no GPU"]);
        names(&refusal(device, &volta), &["Imagined 4000 has compute capability 7.0", "7.5"]);
    }
    names(&refusal(Device::TensorRtRtx, &volta), &["8.6, 8.9 and 12.0 or later", "Imagined 4000 has 7.0"]);

    // A library that was named, or that this process has loaded: what lies beside it counts.
    let cpu = folder.join("cpu/libonnxruntime.so");
    fs::create_dir(folder.join("cpu")).unwrap();
    fs::write(&cpu, "").unwrap();
    let named = Machine { library: Some(cpu.clone()), ..good.clone() };
    let build = ["cpu/libonnxruntime.so is not the GPU's build", CUDA_PROVIDER, "make gpu"];
    names(&refusal(Device::Cuda, &named), &build);
    let loaded = Machine { loaded: Some(cpu.clone()), ..good.clone() };
    let message = refusal(Device::Cuda, &loaded);
    names(&message, &["this process has loaded another build", "cpu/libonnxruntime.so", "a process has one"]);
    // The plugin goes with any build.
    let chosen = choose(Device::TensorRt, &named).unwrap();
    assert_eq!((chosen.provider.name(), chosen.library.as_ref()), ("tensorrt-rtx", Some(&cpu)));
    names(&chosen.passed_over[0].reason, &[TENSORRT_PROVIDER, "is not the GPU's build"]);
    // A link to the library in its own folder will do.
    let link = folder.join("cpu/link.so");
    std::os::unix::fs::symlink(folder.join("libonnxruntime.so"), &link).unwrap();
    let linked = Machine { library: Some(link.clone()), ..good.clone() };
    assert_eq!(choose(Device::Cuda, &linked).unwrap().library, Some(link));
}

#[test]
fn a_bundle_that_does_not_suit() {
    let dir = tempfile::tempdir().unwrap();
    gpu_build(dir.path());
    let machine = machine((8, 6), dir.path());
    let suits = |device: &str| match device {
        "tensorrt" | "tensorrt-rtx" => Err("text is int8 for processors".to_owned()),
        _ => Ok(()),
    };
    let chosen = Device::Auto.choose(&machine, &suits).unwrap();
    assert_eq!(chosen.provider.name(), "cuda");
    assert!(chosen.passed_over.iter().all(|passed| passed.reason == "text is int8 for processors"));
    for device in [Device::TensorRt, Device::TensorRtRtx] {
        let error = device.choose(&machine, &suits).unwrap_err();
        assert_eq!(error.code(), Code::DEVICE_PRECISION);
        names(&error.to_string(), &[&format!("`{device}`"), "int8 for processors"]);
    }
    // What is missing comes first: the bundle is not the reason where the device could not be used anyway.
    let error = Device::Cuda.choose(&Machine { nvidia: Err("none".to_owned()), ..machine }, &suits).unwrap_err();
    assert_eq!(error.code(), Code::DEVICE_UNAVAILABLE);
}

/// What ONNX Runtime says of a graph that it may not rewrite is what the file holds.
#[test]
fn placement_is_that_of_the_graph() {
    let runtime = Runtime::load(None).unwrap_or_else(|e| panic!("this test needs ONNX Runtime (make ort): {e}"));
    for part in ["adapter", "vision", "text", "heads"] {
        let path = tiny_bundle().join(format!("{part}.onnx"));
        let mut expected: BTreeMap<String, usize> = BTreeMap::new();
        let model = Model::decode(fs::read(&path).unwrap().as_slice()).unwrap();
        for Node { kind, domain } in model.graph.unwrap().nodes {
            let kind = if domain.is_empty() { kind } else { format!("{domain}:{kind}") };
            *expected.entry(kind).or_default() += 1;
        }
        let options = SessionOptions { placement: true, strict: true, optimize: false, ..SessionOptions::DEFAULT };
        let session = Session::open(runtime, &path, &options).unwrap();
        let [cpu] = session.placement().unwrap().providers.as_slice() else { panic!("one provider") };
        assert_eq!((cpu.provider.as_str(), &cpu.kinds, cpu.left.len()), ("CPUExecutionProvider", &expected, 0));
        assert_eq!(cpu.nodes, expected.values().sum::<usize>());
        let options = SessionOptions { placement: false, ..options };
        assert!(Session::open(runtime, &path, &options).unwrap().placement().is_none());
    }
    assert!(SHAPES.is_sorted());
}

/// `ba-infer` with a driver that is not real, and a library of ONNX Runtime beside GPU libraries that are not real.
struct Cli {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl Cli {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (driver, gpu) = (dir.path().join("driver"), dir.path().join("gpu"));
        fs::create_dir(&driver).unwrap();
        fs::create_dir(&gpu).unwrap();
        fake::driver(&driver);
        gpu_build(&gpu);
        let named = gpu.join("libonnxruntime.so");
        fs::remove_file(&named).unwrap();
        // A copy: the folder in which a link's target lies would be looked at too.
        fs::copy(library(), &named).unwrap();
        Self { dir, library: named }
    }

    fn run(&self, device: &str, variables: &[(&str, &str)], flags: &[&str]) -> Done {
        let mut command = bare("ba-infer");
        command.arg(scan()).arg("--bundle").arg(tiny_bundle()).args(["--device", device]);
        command.arg("--ort-lib").arg(&self.library).env("LD_LIBRARY_PATH", self.dir.path().join("driver"));
        command
            .env("FAKE_GPUS", "Imagined 4000/8/6")
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env_remove("CUDA_DEVICE_ORDER");
        finish(command.args(flags).envs(variables.iter().copied()))
    }
}

#[test]
fn the_driver_is_asked() {
    let cli = Cli::new();
    let refused = |variables: &[(&str, &str)], words: &[&str]| {
        let done = cli.run("cuda", variables, &[]);
        done.fails_with_one_line("device.unavailable").naming(&[&["device `cuda`"], words].concat());
    };
    refused(&[("FAKE_DRIVER", "535.154.05"), ("FAKE_CUDA", "12020")], &["535.154.05 is too old", "CUDA 12.2", "580"]);
    refused(&[("FAKE_GPUS", "")], &["580.65.06", "finds no GPU"]);
    refused(&[("FAKE_GPUS", "Imagined 900/5/2")], &["Imagined 900 has compute capability 5.2"]);
    refused(&[("FAKE_INIT", "9")], &["installed and not loaded"]);
    refused(&[("FAKE_INIT", "18")], &["restart the machine"]);
    refused(&[("CUDA_VISIBLE_DEVICES", "")], &["CUDA_VISIBLE_DEVICES", "hides every GPU", "GPU-0"]);
    let two = "Imagined 900/5/2;Imagined 4000/7/0";
    refused(&[("FAKE_GPUS", two), ("CUDA_VISIBLE_DEVICES", "GPU-1")], &["Imagined 4000 has compute capability 7.0"]);
    refused(&[("FAKE_GPUS", two), ("CUDA_VISIBLE_DEVICES", "1,0")], &["Imagined 4000 has compute capability 7.0"]);
    // A driver whose library is damaged.
    fs::write(cli.dir.path().join("driver/libnvidia-ml.so.1"), "text").unwrap();
    refused(&[], &["libnvidia-ml.so.1", "cannot be asked", "580"]);
    // `auto` says that it does without, also without -v.
    let done = cli.run("auto", &[], &["--json"]).ok();
    assert_eq!((&done.json()["device"], &done.json()["run"]["chosen"]["asked"]), (&"cpu".into(), &"auto".into()));
    names(&done.stderr, &["auto took cpu", "not cuda: NVIDIA's driver cannot be asked"]);
}

/// All is there, and nothing of it real: ONNX Runtime's own refusal is an error in one line, and the process ends cleanly.
#[test]
fn what_onnx_runtime_refuses_is_told() {
    let cli = Cli::new();
    for (device, refused) in [("cuda", "cuda"), ("tensorrt", "tensorrt-rtx"), ("tensorrt-rtx", "tensorrt-rtx")] {
        let done = cli.run(device, &[], &[]).fails_with_one_line("device.unavailable");
        done.naming(&[&format!("ONNX Runtime does not take the device `{refused}`")]);
    }
    // `auto` goes on to the next, and the processor computes.
    let done = cli.run("auto", &[], &["--json"]).ok();
    names(&done.stderr, &["auto took cpu", "not cuda: ONNX Runtime does not take"]);
    let chosen = &done.json()["run"]["chosen"];
    assert_eq!((&chosen["device"], &chosen["driver"]), (&"cpu".into(), &"580.65.06".into()));
    let passed_over: Vec<&str> = (0..3).filter_map(|i| chosen["passed_over"][i]["device"].as_str()).collect();
    assert_eq!(passed_over, ["tensorrt", "tensorrt-rtx", "cuda"]);
    let json = cli.run("cuda", &[], &["--json"]);
    assert_eq!(json.json()["error"]["code"], "device.unavailable");
    // The CPU is not asked for a GPU, and strictness means nothing to it.
    let done = cli.run("cpu", &[("FAKE_INIT", "9")], &["--strict-device", "-v", "--json"]).ok();
    names(&done.stderr, &["placement: vision: ", " nodes on CPUExecutionProvider"]);
    let run = &done.json()["run"];
    assert!(run["chosen"]["driver"].is_null() && run["chosen"]["gpu"].is_null());
    assert_eq!(run["stages"][0]["placement"]["providers"][0]["provider"], "CPUExecutionProvider");
    let wrong = cli.run("gpu", &[], &[]);
    assert_eq!(wrong.code, Some(2));
    names(&wrong.stderr, &["expected auto, cpu, cuda, tensorrt or tensorrt-rtx"]);
}

/// What lies in no folder is looked for by the system's loader.
#[test]
fn the_loader_is_asked() {
    let cli = Cli::new();
    let gpu = cli.library.parent().unwrap();
    // TensorRT for RTX does not serve this one, wherever its plugin lies.
    let hopper = [("FAKE_GPUS", "Imagined 9000/9/0")];
    let file = TENSORRT[1].0;
    let away = take(gpu, file);
    if Command::new("ldconfig").arg("-p").output().is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(file)) {
        eprintln!("TensorRT is installed: what is said without it did not run");
    } else {
        let done = cli.run("tensorrt", &hopper, &[]).fails_with_one_line("device.unavailable");
        done.naming(&["libnvonnxparser.so.10 (TensorRT 10's ONNX parser) is missing", "from NVIDIA"]);
    }
    fs::rename(away, cli.dir.path().join("driver").join(file)).unwrap();
    let done = cli.run("tensorrt", &hopper, &[]).fails("device.unavailable");
    names(&done.stderr, &["ONNX Runtime does not take the device `tensorrt`"]);
}

/// The rest of this file imagines machines; this one is real.
#[test]
fn this_machine() {
    if Machine::look(Device::Auto, None).installed {
        eprintln!("there is a driver: what is said without one did not run");
        return;
    }
    let mut command = bare("ba-infer");
    command.arg(scan()).arg("--bundle").arg(tiny_bundle()).args(["--device", "cuda"]).env("ORT_DYLIB_PATH", library());
    let done = finish(&mut command);
    done.fails_with_one_line("device.unavailable").naming(&["no NVIDIA driver", "libnvidia-ml.so.1", "580"]);
}
