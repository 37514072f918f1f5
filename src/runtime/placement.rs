//! Which provider computes which nodes, as ONNX Runtime tells it of a session.
//!
//! ONNX Runtime assigns nodes when a session is made, after its basic rewrites (constants folded, doubled nodes merged) and before
//! most fusions: so the names are those of the exported graph, and a kernel that is fused later shows as the nodes that it is made
//! of. A node that was fused before has the name of one of its parts (seen: `MatMulIntegerToFloat` of `MatMulInteger`). Copies
//! between devices, which are put in afterwards, are not counted. It is recorded on GPUs always and on the CPU when asked for.
//!
//! A provider of the GPU that leaves nodes to the CPU pays a copy for each crossing, and TensorRT leaves what it cannot take to
//! CUDA's: those nodes are named. Strict sessions refuse them, but for [`SHAPE_OPS`]: kinds that handle extents and not values, which ONNX Runtime keeps on the CPU by design, because
//! that is where a kernel is launched (seen: the `Squeeze` between `Shape` and `Range` of the text graph, in
//! `tests/cuda_partition.rs`). Its own `session.disable_cpu_ep_fallback` refuses these too, and with them every graph whose
//! extents are not all constants.

// One of the two files with `unsafe` (the other is `checkpoint/mapping.rs`): `ort` has no safe form of these calls yet.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::path::Path;

use ort::session::builder::SessionBuilder;
use ort::{AsPointer, ortsys, sys};
use serde::Serialize;

use super::{Provider, SessionOptions};
use crate::error::{Code, Error, Result};

/// Kinds of nodes that may stay on the CPU in a strict session: they handle extents.
pub const SHAPE_OPS: [&str; 5] = ["Range", "Shape", "Size", "Squeeze", "Unsqueeze"];

/// Most nodes that an error names.
const NAMED: usize = 8;

/// Where the nodes of a session are computed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Each provider that computes nodes, in the order of its first node.
    pub providers: Vec<Placed>,
}

/// What one provider computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// ONNX Runtime's name of the provider, such as `CUDAExecutionProvider`.
    pub provider: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of nodes of each kind of operator; `domain:Kind` outside of ONNX's own domain.
    pub kinds: BTreeMap<String, usize>,
    /// Names of the nodes, in the graph's order, where the GPU provider that was chosen left them to this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<FallbackNode>,
}

/// A node that was left to another provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FallbackNode {
    /// The node's name in the graph.
    pub name: String,
    /// Its operator.
    pub kind: String,
}

impl Placement {
    /// The nodes that a GPU provider left to others; none where the CPU was asked for.
    pub fn left(&self) -> impl Iterator<Item = &FallbackNode> {
        self.providers.iter().flat_map(|placed| &placed.left)
    }

    /// Where the nodes of a part are computed, in a line; without `verbose` only where nodes were left to another provider that
    /// handle values.
    pub fn told(&self, part: &str, verbose: bool) -> Option<String> {
        if !verbose && self.values().next().is_none() {
            return None;
        }
        let placed = |placed: &Placed| {
            let left = if placed.left.is_empty() { String::new() } else { format!(": {}", names(placed.left.iter())) };
            format!("{} nodes on {}{left}", placed.nodes, placed.provider)
        };
        let all: Vec<String> = self.providers.iter().map(placed).collect();
        Some(format!("placement: {part}: {}", all.join("; ")))
    }

    /// The nodes left to others that handle values.
    fn values(&self) -> impl Iterator<Item = &FallbackNode> + Clone {
        self.providers.iter().flat_map(|placed| &placed.left).filter(|node| !SHAPE_OPS.contains(&node.kind.as_str()))
    }

    /// This and what another graph's nodes are computed by.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        for placed in other.providers {
            match self.providers.iter_mut().find(|mine| mine.provider == placed.provider) {
                Some(mine) => {
                    mine.nodes += placed.nodes;
                    placed.kinds.into_iter().for_each(|(kind, n)| *mine.kinds.entry(kind).or_default() += n);
                    mine.left.extend(placed.left);
                }
                None => self.providers.push(placed),
            }
        }
        self
    }

    fn add(&mut self, ep: &str, node: FallbackNode, named: bool) {
        let placed = match self.providers.iter_mut().position(|placed| placed.provider == ep) {
            Some(at) => &mut self.providers[at],
            None => {
                self.providers.push(Placed {
                    provider: ep.to_owned(),
                    nodes: 0,
                    kinds: BTreeMap::new(),
                    left: Vec::new(),
                });
                self.providers.last_mut().expect("one was just added")
            }
        };
        placed.nodes += 1;
        *placed.kinds.entry(node.kind.clone()).or_default() += 1;
        if named {
            placed.left.push(node);
        }
    }

    /// Who computes nodes that were left and handle values.
    fn takers(&self) -> Vec<&str> {
        let values = |placed: &&Placed| placed.left.iter().any(|node| !SHAPE_OPS.contains(&node.kind.as_str()));
        self.providers.iter().filter(values).map(|placed| placed.provider.as_str()).collect()
    }

    /// Fails when nodes were left to another provider that handle values.
    fn check(&self, provider: &dyn Provider) -> Result<()> {
        let left = self.values().count();
        if left == 0 {
            return Ok(());
        }
        let message = format!(
            "device `{}` leaves {left} of {} nodes to {}: {}; without --strict-device they run there",
            provider.name(),
            self.providers.iter().map(|placed| placed.nodes).sum::<usize>(),
            self.takers().join(" and "),
            names(self.values())
        );
        Err(Error::new(Code::DEVICE_FALLBACK, message))
    }
}

/// The first nodes by name.
fn names<'a>(nodes: impl Iterator<Item = &'a FallbackNode> + Clone) -> String {
    let named: Vec<String> = nodes.clone().take(NAMED).map(|node| format!("{} ({})", node.name, node.kind)).collect();
    format!("{}{}", named.join(", "), if nodes.count() > NAMED { ", …" } else { "" })
}

/// The builder of a session that records where nodes are computed, if the options want to know.
pub(super) fn record(builder: SessionBuilder, options: &SessionOptions) -> ort::Result<SessionBuilder> {
    if !wanted(options) {
        return Ok(builder);
    }
    Ok(builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?)
}

fn wanted(options: &SessionOptions) -> bool {
    options.placement || options.provider.on_gpu()
}

/// Where the nodes of a session made by [`record`]'s builder are computed, if the options want to know.
///
/// # Errors
/// `device.fallback` when nodes were left to the CPU that must not be; `runtime.model` when ONNX Runtime does not tell.
pub(super) fn placed(
    session: &ort::session::Session,
    options: &SessionOptions,
    path: &Path,
) -> Result<Option<Placement>> {
    if !wanted(options) {
        return Ok(None);
    }
    let placement = ask(session, options.provider).map_err(|e| {
        let message = format!("ONNX Runtime does not tell where nodes are computed: {e}");
        Error::new(Code::RUNTIME_MODEL, message).at(path)
    })?;
    if options.strict {
        placement.check(options.provider).map_err(|e| e.at(path))?;
    }
    Ok(Some(placement))
}

fn ask(session: &ort::session::Session, provider: &dyn Provider) -> ort::Result<Placement> {
    let mut placement = Placement::default();
    let (mut groups, mut count) = (std::ptr::null::<*const sys::OrtEpAssignedSubgraph>(), 0);
    // SAFETY: the session lives through this function, and what is given out belongs to it and is not changed by a run. ONNX
    // Runtime fills both places, or returns an error.
    ortsys![unsafe Session_GetEpGraphAssignmentInfo(session.ptr(), &mut groups, &mut count)?];
    // SAFETY: an array of that many pointers of the session, as above.
    for &group in unsafe { array(groups, count) } {
        // SAFETY: a pointer of the session's array; the name is zero-terminated and the session's.
        let ep = unsafe { text(|out| ortsys![unsafe EpAssignedSubgraph_GetEpName(group, out)]) }?;
        let (mut nodes, mut count) = (std::ptr::null::<*const sys::OrtEpAssignedNode>(), 0);
        // SAFETY: as for the groups.
        ortsys![unsafe EpAssignedSubgraph_GetNodes(group, &mut nodes, &mut count)?];
        let named = provider.on_gpu() && ep != provider.ep();
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
            placement.add(&ep, FallbackNode { name, kind }, named);
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
    use crate::runtime::provider::PROVIDERS;

    fn placement(left: &[(&str, &str)]) -> Placement {
        let mut placement = Placement::default();
        let node = |name: &str, kind: &str| FallbackNode { name: name.to_owned(), kind: kind.to_owned() };
        placement.add("CUDAExecutionProvider", node("fc.MatMul", "MatMul"), false);
        placement.add("CUDAExecutionProvider", node("fc.Add", "Add"), false);
        left.iter().for_each(|(name, kind)| placement.add("CPUExecutionProvider", node(name, kind), true));
        placement
    }

    #[test]
    fn strict_names_what_was_left() {
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

    /// What TensorRT leaves to CUDA is computed on the GPU and was still asked of TensorRT.
    #[test]
    fn what_goes_to_another_gpu_provider_is_left_too() {
        let trt = *PROVIDERS.iter().find(|p| p.name() == "tensorrt").unwrap();
        let mut placement = Placement::default();
        let node = |name: &str| FallbackNode { name: name.to_owned(), kind: "MatMul".to_owned() };
        placement.add("TensorrtExecutionProvider", node("a"), false);
        placement.add("CUDAExecutionProvider", node("b"), true);
        let message = placement.check(trt).unwrap_err().to_string();
        assert!(message.contains("leaves 1 of 2 nodes to CUDAExecutionProvider: b (MatMul)"), "{message}");
        assert!(placement.told("text", false).unwrap().contains("1 nodes on CUDAExecutionProvider: b (MatMul)"));
    }

    #[test]
    fn told_without_v_where_values_are_left() {
        let shapes = placement(&[("positions.Squeeze", "Squeeze")]);
        assert_eq!(shapes.told("text", false), None);
        let line = "placement: text: 2 nodes on CUDAExecutionProvider; 1 nodes on CPUExecutionProvider: \
                    positions.Squeeze (Squeeze)";
        assert_eq!(shapes.told("text", true).as_deref(), Some(line));
        let both = shapes.and(placement(&[("a", "Conv")]));
        let line = both.told("text", false).unwrap();
        assert!(line.contains("4 nodes on CUDA") && line.contains("positions.Squeeze (Squeeze), a (Conv)"), "{line}");
        assert_eq!(both.left().count(), 2);
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
