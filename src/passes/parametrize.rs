//! Weights that become inputs: what is trained, or is shared by several graphs.

use crate::error::Result;
use crate::graph::{Graph, Rewrite};
use crate::tensor::{DType, LazyTensor};

/// The graph with each float32 weight that `choose` picks by name as a further input, in the order of their first use;
/// and those weights.
///
/// # Errors
/// `graph.invalid`.
pub fn weights_to_inputs(graph: &Graph, choose: &dyn Fn(&str) -> bool) -> Result<(Graph, Vec<(String, LazyTensor)>)> {
    let mut rewrite = Rewrite::new(graph);
    let mut freed = Vec::new();
    for id in graph.initializers() {
        let value = graph.value(id);
        let Some(init) = value.init.as_ref().filter(|t| t.dtype() == DType::F32 && choose(&value.name)) else {
            continue;
        };
        let input = rewrite.builder.input(&value.name, DType::F32, &value.ty.shape);
        rewrite.set(id, input);
        freed.push((value.name.clone(), init.clone()));
    }
    graph.nodes.iter().try_for_each(|node| rewrite.copy(node))?;
    Ok((rewrite.finish()?, freed))
}
