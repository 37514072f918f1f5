//! The circumstances of a run, and the page that holds the last one.

use std::process::Command;

use anyhow::{Context, Result};
use brain_adapter::config::AdapterKind;
use brain_adapter::runtime::Runtime;

use super::suite::{Suite, python, root};

/// The page.
pub const PAGE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- bench suite: begin; generated, edits are lost -->";
const END: &str = "<!-- bench suite: end -->";

/// Machine, versions, command and date.
pub fn circumstances(suite: &Suite, chosen: &[String]) -> String {
    let first = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(key))?.split_once(':')?.1.trim().to_owned();
        Some(line).filter(|l| !l.is_empty())
    };
    let unknown = || String::from("unknown");
    let memory = first("/proc/meminfo", "MemTotal").and_then(|l| l.trim_end_matches(" kB").parse::<f64>().ok());
    let memory = memory.map_or_else(unknown, |kib| format!("{:.1} GiB", kib / 1_048_576.0));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let features = first("/proc/cpuinfo", "flags").unwrap_or_default();
    let features: Vec<&str> = ["avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8"]
        .into_iter()
        .filter(|f| features.split(' ').any(|have| have == *f))
        .collect();
    let cpu = first("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
    let cpu =
        format!("{cpu}{}", if features.is_empty() { String::new() } else { format!(" ({})", features.join(", ")) });
    let options = &suite.options;
    let mut command = String::from("cargo bench --bench suite --");
    for group in chosen {
        command += &format!(" {group}");
    }
    command += &format!(" --layers {} --rounds {}", options.layers, options.rounds);
    if options.checkpoint.is_some() {
        command += " --checkpoint DIR";
    }
    if options.bundle.is_some() {
        command += " --bundle DIR";
    }
    if options.small {
        command += " --size small";
    }
    match options.adapters.as_slice() {
        [] => command += " --adapter none",
        [AdapterKind::Bottleneck2d] => {}
        [AdapterKind::Bottleneck3d] => command += " --adapter 3d",
        _ => command += " --adapter both",
    }
    let runtime = Runtime::load(None).map_or_else(|e| e.to_string(), |r| version_of(r.build));
    format!(
        "* date: {}\n* machine: {cpu}, {cores} cores, {memory} of memory, {}\n* command: `{command}`\n\
         * versions: brain-adapter {}, {}, {runtime}; peers: {}\n",
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_else(unknown),
        said("uname", &["-sr"]).unwrap_or_else(unknown),
        env!("CARGO_PKG_VERSION"),
        said("rustc", &["--version"]).unwrap_or_else(unknown),
        peers(),
    )
}

/// The version out of what ONNX Runtime says of its build.
fn version_of(build: &str) -> String {
    let words = build.split([' ', ',', ';']).map(|w| w.trim_matches(|c: char| !c.is_ascii_digit()));
    let version =
        words.into_iter().find(|w| w.split('.').count() == 3 && w.split('.').all(|n| n.parse::<u16>().is_ok()));
    format!("ONNX Runtime {}", version.unwrap_or(brain_adapter::runtime::PINNED_VERSION))
}

fn peers() -> String {
    let script = root().join("benches/peers/versions.py");
    python()
        .and_then(|python| said(&python.to_string_lossy(), &[&script.to_string_lossy()]))
        .unwrap_or_else(|| "none installed".into())
}

/// A command's output, trimmed.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Puts `text` between the markers of the page; the rest of it stays.
pub fn write(text: &str) -> Result<()> {
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("{PAGE} cannot be read"))?;
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("{PAGE} has no line `{BEGIN}`"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{PAGE} has no line `{END}`"))?;
    let page = format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim_end());
    std::fs::write(&path, page).with_context(|| format!("{PAGE} cannot be written"))
}
