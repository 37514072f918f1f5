//! Where a graph is cut: at its transformer blocks, by the names of its nodes.
//!
//! The one rule for all who run a graph in pieces: the passes and calibration cut a [`Graph`], inference a file
//! ([`crate::onnx::SegmentedModel`]). They differ in the [`Tail`] alone.

use std::ops::Range;

use super::Graph;

/// What becomes of the nodes behind the last block: the final norm, and pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// They are a segment of their own. What leaves the last block is then its residual stream, which calibration
    /// compares as it does that of every other block; behind norm and pooling the block's error would be another
    /// number.
    Separate,
    /// They stay with the last block. ONNX Runtime computes a norm together with the addition in front of it where
    /// nobody else reads the sum (`SkipLayerNormalization`), which rounds otherwise than one after the other: groups of
    /// segments give the bits of the whole only when no cut lies there.
    WithLastBlock,
}

/// A part of a graph that is run on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its block's name (`layers.3`), or `GRAPH.rest` for what is no block.
    pub name: String,
    /// Its nodes, as indices of [`Graph::nodes`].
    pub nodes: Range<usize>,
}

impl Graph {
    /// The graph's segments, in the order in which they run. A graph without blocks is one segment.
    ///
    /// ```
    /// use brain_adapter::graph::{Builder, Dim, Tail};
    /// use brain_adapter::tensor::DType;
    ///
    /// let mut g = Builder::new("text");
    /// let mut x = g.input("x", DType::F32, &[Dim::Known(2)]);
    /// for scope in ["layers.0", "layers.1", "norm"] {
    ///     x = g.scope(scope, |g| g.unary("Relu", x))?;
    /// }
    /// g.output("y", x)?;
    /// let graph = g.finish()?;
    /// let names: Vec<String> = graph.segments(Tail::Separate).into_iter().map(|s| s.name).collect();
    /// assert_eq!(names, ["layers.0", "layers.1", "text.rest"]);
    /// assert_eq!(graph.segments(Tail::WithLastBlock)[1].nodes, 1..3);
    /// # Ok::<(), brain_adapter::Error>(())
    /// ```
    pub fn segments(&self, tail: Tail) -> Vec<Segment> {
        segments(&self.name, self.nodes.iter().map(|n| n.name.as_str()), tail)
    }
}

/// The segments of a graph whose nodes have these names: nodes of one block (`layers.N.*` or `blocks.N.*`) are a
/// segment each, and so is what stands before, between and behind them.
pub(crate) fn segments<'a>(graph: &str, nodes: impl Iterator<Item = &'a str>, tail: Tail) -> Vec<Segment> {
    let blocks: Vec<Option<&str>> = nodes.map(block).collect();
    let last = blocks.iter().rposition(Option::is_some).filter(|_| tail == Tail::WithLastBlock);
    let mut all: Vec<Segment> = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        match all.last_mut() {
            Some(open) if blocks[open.nodes.start] == *block || last.is_some_and(|last| i > last) => {
                open.nodes.end = i + 1
            }
            _ => {
                let name = block.map_or_else(|| format!("{graph}.rest"), str::to_owned);
                all.push(Segment { name, nodes: i..i + 1 });
            }
        }
    }
    all
}

/// The block that a node is named for: `layers.3` of `layers.3.mlp.Mul`.
fn block(node: &str) -> Option<&str> {
    let (kind, rest) = node.split_once('.')?;
    let number = rest.split('.').next()?;
    let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (numbered && matches!(kind, "layers" | "blocks")).then(|| &node[..kind.len() + 1 + number.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_names() {
        let names =
            ["layers.3.mlp.Mul", "blocks.12.Add", "layers.x.Mul", "layers..Mul", "norm.Mul", "layers", "blocks.1"];
        let expected = [Some("layers.3"), Some("blocks.12"), None, None, None, None, Some("blocks.1")];
        assert_eq!(names.map(block), expected);
    }

    #[test]
    fn cuts_differ_behind_the_last_block_alone() {
        let nodes = ["embed", "layers.0.A", "layers.0.B", "layers.1.A", "between", "layers.2.A", "norm.A", "pool"];
        let cut = |nodes: &[&'static str], tail| -> Vec<(String, Range<usize>)> {
            let segments = segments("g", nodes.iter().copied(), tail);
            segments.into_iter().map(|s| (s.name, s.nodes)).collect()
        };
        let named = |all: &[(&str, Range<usize>)]| -> Vec<(String, Range<usize>)> {
            all.iter().map(|(name, nodes)| ((*name).to_owned(), nodes.clone())).collect()
        };
        let mut expected =
            named(&[("g.rest", 0..1), ("layers.0", 1..3), ("layers.1", 3..4), ("g.rest", 4..5), ("layers.2", 5..8)]);
        assert_eq!(cut(&nodes, Tail::WithLastBlock), expected);
        expected[4].1 = 5..6;
        expected.push(("g.rest".to_owned(), 6..8));
        assert_eq!(cut(&nodes, Tail::Separate), expected);
        for tail in [Tail::Separate, Tail::WithLastBlock] {
            assert_eq!(cut(&["a", "b"], tail), named(&[("g.rest", 0..2)]));
            assert_eq!(cut(&[], tail), []);
        }
    }
}
