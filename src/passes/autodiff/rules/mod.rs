//! Gradients of operators: a row an operator in [`TABLE`].
//!
//! A rule gets the gradients of a node's results and gives that of each operand, in the shape that the results were
//! computed in: where an operand was broadcast, the walk sums. Formulas are in each rule's doc, `dy` the gradient of
//! the result `y`.

mod attention;
mod convolution;
mod elementwise;
mod linear;
mod norms;
mod reductions;
mod shapes;

use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Dim, Domain, Node, ValueId};

/// A gradient an operand; none where it is not wanted, or is zero everywhere.
pub(super) type Gradients = Result<Vec<Option<ValueId>>>;

/// How an operator is differentiated.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// By this function.
    Of(fn(&mut Call<'_>) -> Gradients),
    /// Not at all: its results do not change with small changes of its operands.
    Constant,
}

/// One row of the table.
struct Row {
    domain: Domain,
    kind: &'static str,
    /// The attributes that the rule knows: with another one the operator may mean something else.
    attributes: &'static [&'static str],
    rule: Rule,
}

/// A row of an ONNX operator that a function differentiates.
const fn row(kind: &'static str, attributes: &'static [&'static str], rule: fn(&mut Call<'_>) -> Gradients) -> Row {
    Row { domain: Domain::Onnx, kind, attributes, rule: Rule::Of(rule) }
}

/// A row of an ONNX operator whose results do not change with small changes of its operands.
const fn constant(kind: &'static str, attributes: &'static [&'static str]) -> Row {
    Row { domain: Domain::Onnx, kind, attributes, rule: Rule::Constant }
}

const TABLE: &[Row] = &[
    row("Add", &[], elementwise::add),
    row("Sub", &[], elementwise::sub),
    row("Mul", &[], elementwise::mul),
    row("Div", &[], elementwise::div),
    row("Max", &[], elementwise::max),
    row("Min", &[], elementwise::min),
    row("Neg", &[], elementwise::neg),
    row("Sqrt", &[], elementwise::sqrt),
    row("Exp", &[], elementwise::exp),
    row("Log", &[], elementwise::log),
    row("Relu", &[], elementwise::relu),
    row("Gelu", &[], elementwise::gelu),
    row("Identity", &[], elementwise::identity),
    row("Softmax", &["axis"], reductions::softmax),
    row("LogSoftmax", &["axis"], reductions::log_softmax),
    row("ReduceSum", &["keepdims"], reductions::reduce_sum),
    row("ReduceMean", &["keepdims"], reductions::reduce_mean),
    row("MatMul", &[], linear::matmul),
    row("Gemm", &["transA", "transB"], linear::gemm),
    row("Conv", &["kernel_shape", "pads", "strides"], convolution::conv),
    row("BatchNormalization", &["epsilon"], norms::batch),
    row("InstanceNormalization", &["epsilon"], norms::instance),
    row("LayerNormalization", &["axis", "epsilon"], norms::layer),
    row("Reshape", &[], shapes::reshape),
    row("Transpose", &["perm"], shapes::transpose),
    row("Concat", &["axis"], shapes::concat),
    row("Split", &["axis"], shapes::split),
    row("Slice", &[], shapes::slice),
    row("Pad", &[], shapes::pad),
    row("Squeeze", &[], shapes::reshape),
    row("Unsqueeze", &[], shapes::reshape),
    row("Expand", &[], shapes::expand),
    Row {
        domain: Domain::Microsoft,
        kind: "MultiHeadAttention",
        attributes: &["num_heads"],
        rule: Rule::Of(attention::multi_head),
    },
    constant("Equal", &[]),
    constant("Greater", &[]),
    constant("GreaterOrEqual", &[]),
    constant("Less", &[]),
    constant("Shape", &["start", "end"]),
    constant("Size", &[]),
];

/// Every operator that has a rule, with those whose gradient is zero.
pub fn differentiable() -> impl Iterator<Item = (Domain, &'static str)> {
    TABLE.iter().map(|row| (row.domain, row.kind))
}

/// The rule of a node's operator.
///
/// # Errors
/// `graph.invalid` when there is none, or none of this form of the operator.
pub(super) fn find(node: &Node) -> Result<Rule> {
    let Node { name, op, .. } = node;
    let Some(row) = TABLE.iter().find(|row| (row.domain, row.kind) == (op.domain, op.kind)) else {
        let message = format!("node `{name}`: operator `{}` has no gradient rule", op.kind);
        return Err(Error::new(Code::GRAPH_INVALID, message));
    };
    match op.attributes.iter().find(|(attribute, _)| !row.attributes.contains(attribute)) {
        None => Ok(row.rule),
        Some((attribute, value)) => {
            let message = format!("node `{name}`: no gradient of `{}` with `{attribute}` {value}", op.kind);
            Err(Error::new(Code::GRAPH_INVALID, message))
        }
    }
}

/// What a rule sees.
pub(super) struct Call<'a> {
    /// Where the gradient's nodes are added.
    pub g: &'a mut Builder,
    /// The node.
    pub node: &'a Node,
    /// The gradient of each result.
    pub given: &'a [Option<ValueId>],
    /// Which operands' gradients are wanted.
    pub wanted: &'a [bool],
}

impl Call<'_> {
    /// Operand `i`.
    fn x(&self, i: usize) -> Result<ValueId> {
        self.node.inputs.get(i).copied().flatten().ok_or_else(|| self.unfit(&format!("operand {i} is missing")))
    }

    /// The first result.
    fn y(&self) -> ValueId {
        self.node.outputs[0]
    }

    /// The gradient of the first result.
    fn dy(&self) -> Result<ValueId> {
        self.given[0].ok_or_else(|| self.unfit("only a further result has a gradient"))
    }

    /// `make`'s answer where operand `i`'s gradient is wanted.
    fn want(&mut self, i: usize, make: impl FnOnce(&mut Builder) -> Result<ValueId>) -> Result<Option<ValueId>> {
        self.wanted.get(i).copied().unwrap_or(false).then(|| make(self.g)).transpose()
    }

    /// The shape of a value.
    fn shape(&self, id: ValueId) -> Vec<Dim> {
        self.g.ty(id).shape.clone()
    }

    /// Values of the constant integer operand `i`.
    fn ints(&self, i: usize) -> Result<Vec<i64>> {
        let found = self.g.constant_i64(self.x(i)?);
        found.ok_or_else(|| self.unfit(&format!("operand {i} is not a constant of integers")))
    }

    /// The float attribute of that name.
    fn float(&self, name: &str) -> Result<f32> {
        match self.node.op.get(name) {
            Some(crate::graph::Attribute::Float(x)) => Ok(*x),
            _ => Err(self.unfit(&format!("attribute `{name}` is missing"))),
        }
    }

    fn unfit(&self, message: &str) -> Error {
        let Node { name, op, .. } = self.node;
        Error::new(Code::GRAPH_INVALID, format!("node `{name}`: no gradient of this `{}`: {message}", op.kind))
    }
}

/// Axes from the front.
fn axes_from_front(axes: &[i64], rank: usize) -> Vec<i64> {
    axes.iter().map(|&a| if a < 0 { a + rank as i64 } else { a }).collect()
}

/// Reshapes to the shape of another value, which may have one dimension without a number.
fn reshape_like(g: &mut Builder, x: ValueId, like: ValueId) -> Result<ValueId> {
    let shape = g.ty(like).shape.clone();
    let sizes: Vec<i64> = shape.iter().map(|d| d.known().map_or(-1, |n| n as i64)).collect();
    let y = if sizes.iter().filter(|&&n| n == -1).count() > 1 {
        let sizes = g.unary("Shape", like)?;
        g.binary("Reshape", x, sizes)?
    } else {
        g.reshape(x, &sizes)?
    };
    g.declare(y, &shape)
}

/// `x` repeated to the shape of another value.
fn expanded(g: &mut Builder, x: ValueId, like: ValueId) -> Result<ValueId> {
    let shape = g.ty(like).shape.clone();
    let sizes: Option<Vec<i64>> = shape.iter().map(|d| d.known().map(|n| n as i64)).collect();
    let sizes = match sizes {
        Some(sizes) => g.ints(&sizes),
        None => g.unary("Shape", like)?,
    };
    let wide = g.binary("Expand", x, sizes)?;
    g.declare(wide, &shape)
}
