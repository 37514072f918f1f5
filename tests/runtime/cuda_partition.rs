//! Which nodes of every graph ONNX Runtime places on its CUDA provider, without a GPU: the provider is real, the GPU is
//! not (`devices/stub.rs`). It runs where `make gpu` has fetched the provider, and computes nothing.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::Code;
use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::export;
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Device, Gpu, Machine, Nvidia, Runtime, SHAPE_OPS, Session, SessionOptions};
use support::devices::stub;
use support::process::alone;
use support::{forms, oracle};

const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// Everything in one folder: the build that was fetched, linked to, and libraries that stand in for CUDA's.
fn stand_in(folder: &Path) -> Option<Machine> {
    let files = ["libonnxruntime.so", "libonnxruntime_providers_shared.so", PROVIDER];
    let fetched = oracle::gpu(&files, "placement by the CUDA provider")?;
    for name in files {
        std::os::unix::fs::symlink(fetched.join(name), folder.join(name)).unwrap();
    }
    stub::make(folder, &fetched.join(PROVIDER)).expect("Rust links with cc, which comes with nm");
    // Opened for convolutions that are run, which none is.
    let cudnn = ["", "_graph", "_ops", "_cnn", "_heuristic", "_engines_precompiled", "_engines_runtime_compiled"];
    for library in cudnn.map(|part| format!("libcudnn{part}.so.9")).into_iter().chain(["libnvrtc.so.13".to_owned()]) {
        fs::copy(folder.join("libcurand.so.10"), folder.join(library)).unwrap();
    }
    let gpu =
        Gpu { name: "Stand-in".into(), capability: (8, 6), memory: 16 << 30, free: 15 << 30, uuid: "GPU-0".into() };
    Some(Machine {
        nvidia: Ok(Nvidia { driver: "580.65.06".into(), cuda: (13, 0), gpus: vec![gpu] }),
        library: None,
        loaded: None,
        folders: vec![folder.to_path_buf()],
        system_loader: false,
        driver_installed: true,
        refused: Vec::new(),
        notes: Vec::new(),
    })
}

/// A bundle in a form; ONNX Runtime is loaded already.
fn bundle(dir: &Path, precision: Precision, target: Target, library: &Path) -> Bundle {
    let mut plan = forms::plan(dir, precision, target);
    plan.library = Some(library.to_path_buf());
    export::run(&plan, &mut Silent).unwrap_or_else(|e| panic!("{precision} for {target}: {e}"));
    Bundle::open(&plan.output).unwrap()
}

#[test]
fn nothing_but_extents_is_left_to_the_processor() {
    alone(module_path!(), "nothing_but_extents_is_left_to_the_processor", place_on_cuda);
}

fn place_on_cuda() {
    let dir = tempfile::tempdir().unwrap();
    let Some(machine) = stand_in(dir.path()) else { return };
    let chosen = Device::Cuda.select(&machine, &|_| Ok(())).unwrap();
    let library: PathBuf = chosen.library.unwrap();
    let runtime = Runtime::load(Some(&library)).unwrap();
    assert_eq!(runtime.library, library);
    let model = dir.path().join("tiny");
    fs::create_dir(&model).unwrap();
    forms::write(&model, forms::FIXTURES[0]);
    let strict =
        SessionOptions { provider: chosen.provider, strict: true, threads: Some(1), ..SessionOptions::DEFAULT };
    let forms = [
        (Precision::Fp32, Target::Cpu),
        (Precision::Fp16, Target::Cpu),
        (Precision::Int8, Target::Cuda),
        (Precision::Int4, Target::Cuda),
    ];
    for (precision, target) in forms {
        let bundle = bundle(&model, precision, target, &library);
        for (part, path) in forms::graphs(&bundle, "cuda") {
            let session = Session::open(runtime, &path, &strict).unwrap_or_else(|e| panic!("{precision} {part}: {e}"));
            let placement = session.placement().unwrap();
            let cuda = &placement.providers.iter().find(|placed| placed.provider == "CUDAExecutionProvider").unwrap();
            let left: Vec<&str> = placement.fallback().map(|node| node.kind.as_str()).collect();
            assert!(
                left.iter().all(|kind| SHAPE_OPS.contains(kind)) && left.len() <= 1,
                "{precision} {part}: {left:?}"
            );
            assert!(cuda.nodes >= 5, "{precision} {part}");
            eprintln!("{precision} for {target}, {part}: {} nodes on CUDA, on the CPU {left:?}", cuda.nodes);
        }
    }
    // Integers for CPUs, which the provider has no kernels for: reported, and refused where that is asked for.
    let bundle = bundle(&model, Precision::Int8, Target::Cpu, &library);
    let path = bundle.file(&bundle.manifest.parts["text"].file).unwrap();
    let error = Session::open(runtime, &path, &strict).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Code::DEVICE_FALLBACK);
    assert!(error.to_string().contains("layers.0.self_attn.q_proj.MatMulInteger"), "{error}");
    let lenient = SessionOptions { strict: false, ..strict };
    let session = Session::open(runtime, &path, &lenient).unwrap();
    let told = session.placement().unwrap().describe("text", false).unwrap();
    assert!(told.contains("MatMulInteger") && told.contains("nodes on CUDAExecutionProvider"), "{told}");
}
