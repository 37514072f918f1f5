//! Which device is selected on imagined machines, and which message names what is missing. No GPU is needed or used.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use brain_adapter::Code;
use brain_adapter::runtime::{
    Device, Gpu, Machine, Nvidia, Runtime, SHAPE_OPS, SelectedDevice, Session, SessionOptions,
};
use prost::Message;
use support::commands::tiny_bundle;
use support::devices::fake::{
    CUDA, CUDA_PROVIDER, RTX, RTX_PROVIDER, TENSORRT, TENSORRT_PROVIDER, gpu_build, put_back, take,
};

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
        driver_installed: true,
        notes: Vec::new(),
    }
}

fn choose(device: Device, machine: &Machine) -> brain_adapter::Result<SelectedDevice> {
    device.select(machine, &|_| Ok(()))
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
    // The plugin supports neither Turing (7.5) nor A100 (8.0) and H100 (9.0).
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
    let told = chosen.describe(false);
    assert_eq!(told.len(), 2, "{told:?}");
    names(&told.join("\n"), &["cpu (auto)", "not cuda: there is no GPU's build of ONNX Runtime", "make gpu"]);
    assert_eq!(chosen.describe(true).len(), 4);
    let none =
        Machine { nvidia: Err("there is no driver".to_owned()), driver_installed: false, ..machine((8, 6), folder) };
    let chosen = choose(Device::Auto, &none).unwrap();
    assert_eq!(chosen.describe(false), [""; 0]);
    let expected = ["device: cpu (auto)", "device: not tensorrt, tensorrt-rtx, cuda: there is no driver"];
    assert_eq!(chosen.describe(true), expected);
}

/// A bundle for the CPU is not why a GPU's libraries are loaded: here they would fail.
#[test]
fn auto_asks_first_whether_the_bundle_suits() {
    let dir = tempfile::tempdir().unwrap();
    gpu_build(dir.path());
    std::fs::write(dir.path().join("libcublasLt.so.13"), b"damaged").unwrap();
    let suits = |name: &str| if name == "cpu" { Ok(()) } else { Err("its integers are for the CPU".to_owned()) };
    let machine = machine((8, 6), dir.path());
    let chosen = Device::Auto.select(&machine, &suits).unwrap();
    assert_eq!(chosen.provider.name(), "cpu");
    assert!(chosen.passed_over.iter().all(|passed| passed.reason == "its integers are for the CPU"));
    // Named, what is wrong with the machine comes first.
    let error = Device::Cuda.select(&machine, &suits).unwrap_err();
    assert_eq!(error.code(), Code::DEVICE_UNAVAILABLE);
    names(&error.to_string(), &["libcublasLt.so.13", "does not load"]);
}

#[test]
fn what_is_chosen_is_told() {
    let dir = tempfile::tempdir().unwrap();
    gpu_build(dir.path());
    let machine = Machine { notes: vec!["which is first?".to_owned()], ..machine((8, 6), dir.path()) };
    let chosen = choose(Device::Cuda, &machine).unwrap();
    assert_eq!(chosen.to_string(), "cuda (Imagined 4000, driver 580.65.06)");
    assert_eq!(chosen.library.as_deref(), Some(dir.path().join("libonnxruntime.so").as_path()));
    assert_eq!(chosen.describe(false), ["device: which is first?"]);
    let expected = serde_json::json!({
        "asked": "cuda", "device": "cuda", "driver": "580.65.06", "passed_over": [], "notes": ["which is first?"],
        "gpu": {"name": "Imagined 4000", "compute_capability": "8.6", "memory_bytes": 16u64 << 30,
                "free_bytes": 15u64 << 30},
    });
    assert_eq!(serde_json::to_value(&chosen).unwrap(), expected);
    let chosen = choose(Device::Cpu, &machine).unwrap();
    assert_eq!((chosen.to_string().as_str(), chosen.describe(true).len(), chosen.gpu), ("cpu", 0, None));
}

/// Each library of each provider, removed alone: its name, what it is, and what to install.
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
                missing: install them into";
    names(&refusal(Device::Cuda, &machine), &[both, "make gpu"]);
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

    // A library that was named, or that this process has loaded: what lies next to it counts.
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
        "tensorrt" | "tensorrt-rtx" => Err("text is int8 for CPUs".to_owned()),
        _ => Ok(()),
    };
    let chosen = Device::Auto.select(&machine, &suits).unwrap();
    assert_eq!(chosen.provider.name(), "cuda");
    assert!(chosen.passed_over.iter().all(|passed| passed.reason == "text is int8 for CPUs"));
    for device in [Device::TensorRt, Device::TensorRtRtx] {
        let error = device.select(&machine, &suits).unwrap_err();
        assert_eq!(error.code(), Code::DEVICE_PRECISION);
        names(&error.to_string(), &[&format!("`{device}`"), "int8 for CPUs"]);
    }
    // What is missing comes first: the bundle is not the reason where the device could not be used anyway.
    let error = Device::Cuda.select(&Machine { nvidia: Err("none".to_owned()), ..machine }, &suits).unwrap_err();
    assert_eq!(error.code(), Code::DEVICE_UNAVAILABLE);
}

/// The placement that ONNX Runtime reports of a graph that it may not rewrite is that of the file's nodes.
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
        assert_eq!((cpu.provider.as_str(), &cpu.kinds, cpu.fallback.len()), ("CPUExecutionProvider", &expected, 0));
        assert_eq!(cpu.nodes, expected.values().sum::<usize>());
        let options = SessionOptions { placement: false, ..options };
        assert!(Session::open(runtime, &path, &options).unwrap().placement().is_none());
    }
    assert!(SHAPE_OPS.is_sorted());
}
