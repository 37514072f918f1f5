//! Reverse-mode differentiation of a graph, in standard ONNX operators.
//!
//! One table of rules (`rules`), operator → gradient of each operand, and one walk ([`gradients`]) from the results
//! back to what is asked for. The walk alone knows of accumulation, broadcasting and reachability; a rule knows only
//! calculus. What does not lead to something asked for is not differentiated. An operator without a rule is an error
//! that names the node.
//!
//! [`differentiate`] turns a graph into two that a host runs one after the other:
//!
//! ```text
//! forward   x, weights            → y, saved values
//! backward  x, saved values, weights, d.y → d.x, d.weight …
//! ```
//!
//! What the backward graph needs and was not saved, it computes anew (Chen et al. 2016, "Training deep nets with
//! sublinear memory cost"), so the choice of what is saved trades memory for time and changes results by rounding
//! alone.
//!
//! ```
//! use brain_adapter::graph::{Builder, Dim};
//! use brain_adapter::passes::autodiff::{gradient_of, joint};
//! use brain_adapter::tensor::DType;
//!
//! let mut g = Builder::new("square");
//! let x = g.input("x", DType::F32, &[Dim::Known(3)]);
//! let y = g.mul(x, x)?;
//! g.output("y", y)?;
//!
//! let graph = joint(&g.finish()?, &["y"], &["x"])?; // y, and d.x from x and d.y
//! assert!(graph.find(&gradient_of("x")).is_some());
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod rules;
mod walk;

pub use rules::differentiable;
pub use walk::gradients;

use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Graph, Node, Rewrite, ValueId};

/// A graph with its backward pass.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// The graph, with the saved values as further outputs.
    pub forward: Graph,
    /// From the forward graph's inputs, the saved values and the gradient `d.NAME` of each output to the gradient
    /// `d.NAME` of each value asked for. Its inputs are those of them that it reads.
    pub backward: Graph,
    /// Names of the saved values.
    pub saved: Vec<String>,
}

/// The name of the gradient of a value.
pub fn gradient_of(name: &str) -> String {
    format!("d.{name}")
}

/// The graph with further outputs: the gradient `d.NAME` of `Σ d.RESULT · RESULT`, over its outputs `of`, with respect
/// to each of its inputs `wrt`. `d.RESULT` are further inputs.
///
/// # Errors
/// `graph.invalid` when a name is unknown, an operator has no rule, or a result does not depend on an input.
pub fn joint(graph: &Graph, of: &[&str], wrt: &[&str]) -> Result<Graph> {
    let fail = |message: String| Error::new(Code::GRAPH_INVALID, format!("graph `{}`: {message}", graph.name));
    let mut joint = Rewrite::new(graph);
    graph.nodes.iter().try_for_each(|node| joint.copy(node))?;
    let mut seeds = Vec::new();
    for name in of {
        let id = graph.find(name).filter(|id| graph.outputs.contains(id));
        let id = id.ok_or_else(|| fail(format!("there is no output `{name}`")))?;
        let ty = graph.value(id).ty.clone();
        let seed = joint.builder.input(&gradient_of(name), ty.dtype, &ty.shape);
        seeds.push((joint.value(id)?, seed));
    }
    let mut sources = Vec::new();
    for name in wrt {
        let id = graph.find(name).filter(|id| graph.inputs.contains(id));
        sources.push(joint.value(id.ok_or_else(|| fail(format!("there is no input `{name}`")))?)?);
    }
    for &id in &graph.outputs {
        let new = joint.value(id)?;
        joint.builder.output(&graph.value(id).name, new)?;
    }
    let found = gradients(&mut joint.builder, &seeds, &sources)?;
    for (name, gradient) in wrt.iter().zip(found) {
        let gradient = gradient.ok_or_else(|| fail(format!("no result depends on `{name}`")))?;
        named(&mut joint.builder, gradient, &gradient_of(name))?;
    }
    joint.builder.finish()
}

/// Differentiates `graph` as [`joint`] does, and cuts the result into a forward and a backward graph. `save` selects
/// the nodes of `graph` whose results the forward pass saves for the backward pass (PyTorch's saved tensors); the
/// backward graph computes anew what else it needs. Results that it never reads are not saved. With a constant `false`
/// nothing but the inputs is kept, as in gradient checkpointing; with a constant `true` nothing is computed twice.
///
/// ```
/// use brain_adapter::graph::{Builder, Dim};
/// use brain_adapter::passes::autodiff::differentiate;
/// use brain_adapter::tensor::DType;
///
/// let mut g = Builder::new("square");
/// let x = g.input("x", DType::F32, &[Dim::Known(2)]);
/// let y = g.mul(x, x)?;
/// g.output("y", y)?;
/// let graphs = differentiate(&g.finish()?, &["y"], &["x"], &|_| false)?;
/// let names = |ids: &[_]| ids.iter().map(|&id| graphs.backward.value(id).name.clone()).collect::<Vec<_>>();
/// assert_eq!(names(&graphs.backward.inputs), ["x", "d.y"]);
/// assert_eq!(names(&graphs.backward.outputs), ["d.x"]);
/// # Ok::<(), brain_adapter::Error>(())
/// ```
///
/// # Errors
/// As [`joint`].
pub fn differentiate(graph: &Graph, of: &[&str], wrt: &[&str], save: &dyn Fn(&Node) -> bool) -> Result<Differentiated> {
    let joint = joint(graph, of, wrt)?;
    let given = graph.inputs.iter().map(|&id| graph.value(id).name.as_str());
    let saved: Vec<&str> = graph
        .nodes
        .iter()
        .filter(|n| save(n))
        .flat_map(|n| &n.outputs)
        .map(|&id| graph.value(id).name.as_str())
        .collect();
    let seeds: Vec<String> = of.iter().map(|name| gradient_of(name)).collect();
    let leaves = given.chain(saved.iter().copied()).chain(seeds.iter().map(String::as_str));
    let leaves: Vec<ValueId> = leaves.filter_map(|name| joint.find(name)).collect();
    let mut backward = joint.between(&leaves, &joint.outputs[graph.outputs.len()..])?;
    backward.name = format!("{}.backward", graph.name);
    // What was offered and is not read need not be kept.
    let read = |name: &&str| backward.inputs.iter().any(|&id| backward.value(id).name == **name);
    let saved: Vec<String> = saved.into_iter().filter(read).map(str::to_owned).collect();
    let kept = saved.iter().filter_map(|name| graph.find(name)).filter(|id| !graph.outputs.contains(id));
    let outputs: Vec<ValueId> = graph.outputs.iter().copied().chain(kept).collect();
    Ok(Differentiated { forward: graph.between(&graph.inputs, &outputs)?, backward, saved })
}

/// Makes a value an output of that name, by way of a copy where it cannot be one itself.
fn named(g: &mut Builder, value: ValueId, name: &str) -> Result<()> {
    // An input, or an output under another name.
    let taken = g.producer(value).is_none() || g.is_output(value);
    let value = if taken { g.unary("Identity", value)? } else { value };
    g.output(name, value)
}
