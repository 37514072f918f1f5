//! Placement: which execution provider computes which nodes of a session, as ONNX Runtime reports it.
//!
//! ONNX Runtime assigns nodes when it creates a session, after its basic rewrites (constants folded, duplicate nodes
//! merged) and before most fusions: the names are therefore those of the exported graph, and a kernel that is fused
//! later appears as the nodes that it consists of. A node that was fused before has the name of one of its parts (seen:
//! `MatMulIntegerToFloat` of `MatMulInteger`). Copies between devices, which are inserted afterwards, are not counted.
//! Placement is always recorded on GPUs, and on the CPU on request.
//!
//! A GPU provider whose fallback is the CPU pays a copy for each crossing, and TensorRT's fallback is CUDA: fallback
//! nodes are reported by name. Strict sessions refuse them, except for [`SHAPE_OPS`]: operators on shapes, not values,
//! which ONNX Runtime keeps on the CPU by design, because kernels are launched from there (seen: the `Squeeze` between
//! `Shape` and `Range` of the text graph, in `tests/runtime/cuda_partition.rs`). Its own
//! `session.disable_cpu_ep_fallback` refuses these too, and with them every graph with a dynamic dimension.

// One of the three files with `unsafe` (the others are `checkpoint/mapping.rs` and `cli/bus_error.rs`): `ort` has no
// safe form of these calls yet.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::path::Path;

use ort::session::builder::SessionBuilder;
use ort::{AsPointer, ortsys, sys};
use serde::Serialize;

use super::{Provider, SessionOptions};
use crate::error::{Code, Error, Result};

/// Shape-only operators, which may fall back to the CPU in a strict session.
pub const SHAPE_OPS: [&str; 5] = ["Range", "Shape", "Size", "Squeeze", "Unsqueeze"];

/// Maximum number of nodes that a message names.
const MAX_NAMED: usize = 8;

/// The nodes of a session by the provider that computes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Each provider that computes nodes, in the order of its first node.
    pub providers: Vec<ProviderNodes>,
}

/// The nodes that one provider computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProviderNodes {
    /// ONNX Runtime's name of the provider, such as `CUDAExecutionProvider`.
    pub provider: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of nodes of each operator; `domain:Kind` outside of ONNX's own domain.
    pub kinds: BTreeMap<String, usize>,
    /// The nodes, in the graph's order, if they are here because the selected GPU provider does not compute them.
    #[serde(rename = "left", skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<FallbackNode>,
}

/// A node that the selected GPU provider does not compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FallbackNode {
    /// The node's name in the graph.
    pub name: String,
    /// Its operator.
    pub kind: String,
}

impl FallbackNode {
    fn is_shape_only(&self) -> bool {
        SHAPE_OPS.contains(&self.kind.as_str())
    }
}

impl Placement {
    /// The nodes that the selected GPU provider does not compute; none if the CPU was selected.
    pub fn fallback(&self) -> impl Iterator<Item = &FallbackNode> {
        self.providers.iter().flat_map(|nodes| &nodes.fallback)
    }

    /// The placement of a part in one line; without `verbose` only if there are fallback nodes other than
    /// [`SHAPE_OPS`].
    pub fn describe(&self, part: &str, verbose: bool) -> Option<String> {
        if !verbose && self.value_fallback().next().is_none() {
            return None;
        }
        let describe = |p: &ProviderNodes| {
            let names = if p.fallback.is_empty() { String::new() } else { format!(": {}", names(p.fallback.iter())) };
            format!("{} {} on {}{names}", p.nodes, if p.nodes == 1 { "node" } else { "nodes" }, p.provider)
        };
        let all: Vec<String> = self.providers.iter().map(describe).collect();
        Some(format!("placement: {part}: {}", all.join("; ")))
    }

    /// The fallback nodes that operate on values.
    fn value_fallback(&self) -> impl Iterator<Item = &FallbackNode> + Clone {
        self.providers.iter().flat_map(|nodes| &nodes.fallback).filter(|node| !node.is_shape_only())
    }

    /// Adds the placement of another graph's nodes.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for nodes in other.providers {
            match self.providers.iter_mut().find(|mine| mine.provider == nodes.provider) {
                Some(mine) => {
                    mine.nodes += nodes.nodes;
                    nodes.kinds.into_iter().for_each(|(kind, n)| *mine.kinds.entry(kind).or_default() += n);
                    mine.fallback.extend(nodes.fallback);
                }
                None => self.providers.push(nodes),
            }
        }
        self
    }

    fn add(&mut self, ep: &str, node: FallbackNode, is_fallback: bool) {
        let nodes = match self.providers.iter_mut().position(|nodes| nodes.provider == ep) {
            Some(at) => &mut self.providers[at],
            None => {
                self.providers.push(ProviderNodes {
                    provider: ep.to_owned(),
                    nodes: 0,
                    kinds: BTreeMap::new(),
                    fallback: Vec::new(),
                });
                self.providers.last_mut().expect("one was just added")
            }
        };
        nodes.nodes += 1;
        *nodes.kinds.entry(node.kind.clone()).or_default() += 1;
        if is_fallback {
            nodes.fallback.push(node);
        }
    }

    /// The providers that compute fallback nodes other than [`SHAPE_OPS`].
    fn fallback_providers(&self) -> Vec<&str> {
        let has_values = |nodes: &&ProviderNodes| nodes.fallback.iter().any(|node| !node.is_shape_only());
        self.providers.iter().filter(has_values).map(|nodes| nodes.provider.as_str()).collect()
    }

    /// Fails if there are fallback nodes other than [`SHAPE_OPS`].
    fn check(&self, provider: &dyn Provider) -> Result<()> {
        let fallback = self.value_fallback().count();
        if fallback == 0 {
            return Ok(());
        }
        let message = format!(
            "device `{}` leaves {fallback} of {} nodes to {}: {}; without --strict-device they run there",
            provider.name(),
            self.providers.iter().map(|nodes| nodes.nodes).sum::<usize>(),
            self.fallback_providers().join(" and "),
            names(self.value_fallback())
        );
        Err(Error::new(Code::DEVICE_FALLBACK, message))
    }
}

/// The first nodes, as `name (operator)`.
fn names<'a>(nodes: impl Iterator<Item = &'a FallbackNode> + Clone) -> String {
    let named: Vec<String> =
        nodes.clone().take(MAX_NAMED).map(|node| format!("{} ({})", node.name, node.kind)).collect();
    format!("{}{}", named.join(", "), if nodes.count() > MAX_NAMED { ", …" } else { "" })
}

/// Makes a session record its placement, if the options ask for it.
pub(super) fn record(builder: SessionBuilder, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    if !is_recorded(options) {
        return Ok(builder);
    }
    Ok(builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?)
}

fn is_recorded(options: &SessionOptions) -> bool {
    options.placement || options.provider.on_gpu()
}

/// The placement of a session created by [`record`]'s builder, if the options ask for it.
///
/// # Errors
/// `device.fallback` when a strict session has fallback nodes other than [`SHAPE_OPS`]; `runtime.model` when ONNX
/// Runtime does not report the placement.
pub(super) fn of_session(
    session: &ort::session::Session,
    options: &SessionOptions,
    path: &Path,
) -> Result<Option<Placement>> {
    if !is_recorded(options) {
        return Ok(None);
    }
    let placement = query(session, options.provider).map_err(|e| {
        let message = format!("ONNX Runtime does not report the placement of nodes: {e}");
        Error::new(Code::RUNTIME_MODEL, message).at(path)
    })?;
    if options.strict {
        placement.check(options.provider).map_err(|e| e.at(path))?;
    }
    Ok(Some(placement))
}

fn query(session: &ort::session::Session, provider: &dyn Provider) -> ort::Result<Placement> {
    let mut placement = Placement::default();
    let (mut groups, mut count) = (std::ptr::null::<*const sys::OrtEpAssignedSubgraph>(), 0);
    // SAFETY: the session lives through this function; the array belongs to it and is not changed by a run. ONNX
    // Runtime fills both places, or returns an error.
    ortsys![unsafe Session_GetEpGraphAssignmentInfo(session.ptr(), &mut groups, &mut count)?];
    // SAFETY: an array of that many pointers of the session, as above.
    for &group in unsafe { array(groups, count) } {
        // SAFETY: a pointer of the session's array; the name is zero-terminated and the session's.
        let ep = unsafe { text(|out| ortsys![unsafe EpAssignedSubgraph_GetEpName(group, out)]) }?;
        let (mut nodes, mut count) = (std::ptr::null::<*const sys::OrtEpAssignedNode>(), 0);
        // SAFETY: as for the groups.
        ortsys![unsafe EpAssignedSubgraph_GetNodes(group, &mut nodes, &mut count)?];
        let is_fallback = provider.on_gpu() && ep != provider.ep();
        // SAFETY: as for the groups.
        for &node in unsafe { array(nodes, count) } {
            // SAFETY: a pointer of the group's array; names are zero-terminated and the session's.
            let (name, domain, kind) = unsafe {
                (
                    text(|out| ortsys![unsafe EpAssignedNode_GetName(node, out)])?,
                    text(|out| ortsys![unsafe EpAssignedNode_GetDomain(node, out)])?,
                    text(|out| ortsys![unsafe EpAssignedNode_GetOperatorType(node, out)])?,
                )
            };
            let kind = if domain.is_empty() { kind } else { format!("{domain}:{kind}") };
            placement.add(&ep, FallbackNode { name, kind }, is_fallback);
        }
    }
    Ok(placement)
}

/// # Safety
/// `start` is null, or the start of `count` pointers that live and do not change for as long as `'a`.
unsafe fn array<'a, T>(start: *const *const T, count: usize) -> &'a [*const T] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(start, count) }
}

/// # Safety
/// `get` fills its argument with a zero-terminated string that lives until this returns, or returns an error.
unsafe fn text(get: impl FnOnce(*mut *const c_char) -> sys::OrtStatusPtr) -> ort::Result<String> {
    let mut text = std::ptr::null();
    let status = get(&mut text);
    // SAFETY: a status that ONNX Runtime just returned, taken once.
    unsafe { ort::Error::result_from_status(status) }?;
    if text.is_null() {
        return Ok(String::new());
    }
    // SAFETY: the caller's.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::device::PROVIDERS;

    fn placement(fallback: &[(&str, &str)]) -> Placement {
        let mut placement = Placement::default();
        let node = |name: &str, kind: &str| FallbackNode { name: name.to_owned(), kind: kind.to_owned() };
        placement.add("CUDAExecutionProvider", node("fc.MatMul", "MatMul"), false);
        placement.add("CUDAExecutionProvider", node("fc.Add", "Add"), false);
        fallback.iter().for_each(|(name, kind)| placement.add("CPUExecutionProvider", node(name, kind), true));
        placement
    }

    #[test]
    fn strict_names_the_fallback_nodes() {
        let cuda = *PROVIDERS.iter().find(|p| p.name() == "cuda").unwrap();
        placement(&[]).check(cuda).unwrap();
        placement(&[("positions.Shape", "Shape"), ("positions.Squeeze", "Squeeze")]).check(cuda).unwrap();
        let error = placement(&[("positions.Shape", "Shape"), ("a.Conv", "Conv"), ("b.Gelu", "com.microsoft:Gelu")]);
        let error = error.check(cuda).unwrap_err();
        assert_eq!(error.code(), Code::DEVICE_FALLBACK);
        let message = error.to_string();
        assert!(
            message.contains("`cuda` leaves 2 of 5 nodes to CPUExecutionProvider:") && !message.contains("Shape"),
            "{message}"
        );
        assert!(message.contains("a.Conv (Conv), b.Gelu (com.microsoft:Gelu);"), "{message}");
        let many: Vec<(String, &str)> = (0..20).map(|i| (format!("n{i}"), "Conv")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(n, k)| (n.as_str(), *k)).collect();
        let message = placement(&many).check(cuda).unwrap_err().to_string();
        assert!(message.contains("20 of 22") && message.contains("n7 (Conv), …"), "{message}");
    }

    /// TensorRT's fallback to CUDA stays on the GPU and is a fallback all the same.
    #[test]
    fn another_gpu_provider_is_a_fallback_too() {
        let trt = *PROVIDERS.iter().find(|p| p.name() == "tensorrt").unwrap();
        let mut placement = Placement::default();
        let node = |name: &str| FallbackNode { name: name.to_owned(), kind: "MatMul".to_owned() };
        placement.add("TensorrtExecutionProvider", node("a"), false);
        placement.add("CUDAExecutionProvider", node("b"), true);
        let message = placement.check(trt).unwrap_err().to_string();
        assert!(message.contains("leaves 1 of 2 nodes to CUDAExecutionProvider: b (MatMul)"), "{message}");
        assert!(placement.describe("text", false).unwrap().contains("1 node on CUDAExecutionProvider: b (MatMul)"));
    }

    #[test]
    fn reported_without_v_if_values_fall_back() {
        let shapes = placement(&[("positions.Squeeze", "Squeeze")]);
        assert_eq!(shapes.describe("text", false), None);
        let line = "placement: text: 2 nodes on CUDAExecutionProvider; 1 node on CPUExecutionProvider: \
                    positions.Squeeze (Squeeze)";
        assert_eq!(shapes.describe("text", true).as_deref(), Some(line));
        let both = shapes.merge(placement(&[("a", "Conv")]));
        let line = both.describe("text", false).unwrap();
        assert!(line.contains("4 nodes on CUDA") && line.contains("positions.Squeeze (Squeeze), a (Conv)"), "{line}");
        assert_eq!(both.fallback().count(), 2);
    }

    #[test]
    fn as_json() {
        let json = serde_json::to_value(placement(&[("a", "Conv")])).unwrap();
        let expected = serde_json::json!({"providers": [
            {"provider": "CUDAExecutionProvider", "nodes": 2, "kinds": {"Add": 1, "MatMul": 1}},
            {"provider": "CPUExecutionProvider", "nodes": 1, "kinds": {"Conv": 1},
             "left": [{"name": "a", "kind": "Conv"}]},
        ]});
        assert_eq!(json, expected);
    }
}
