//! Gradients of operators: a row an operator in [`find`]'s table.
//!
//! A rule gets the gradients of a node's results and gives that of each operand, in the shape that the results were
//! computed in: where an operand was broadcast, the walk sums. Formulas are in each rule's doc, `dy` the gradient of the
//! result `y`.

mod attention;
mod convolution;
mod elementwise;
mod linear;
mod norms;
mod reductions;
mod shapes;

use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Dim, Domain, Node, Op, ValueId};

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

/// The rule of an operator.
pub(super) fn find(op: &Op) -> Option<Rule> {
    Some(Rule::Of(match (op.domain, op.kind) {
        (Domain::Onnx, "Add") => elementwise::add,
        (Domain::Onnx, "Sub") => elementwise::sub,
        (Domain::Onnx, "Mul") => elementwise::mul,
        (Domain::Onnx, "Div") => elementwise::div,
        (Domain::Onnx, "Max") => elementwise::max,
        (Domain::Onnx, "Min") => elementwise::min,
        (Domain::Onnx, "Neg") => elementwise::neg,
        (Domain::Onnx, "Sqrt") => elementwise::sqrt,
        (Domain::Onnx, "Exp") => elementwise::exp,
        (Domain::Onnx, "Log") => elementwise::log,
        (Domain::Onnx, "Relu") => elementwise::relu,
        (Domain::Onnx, "Gelu") => elementwise::gelu,
        (Domain::Onnx, "Identity") => elementwise::identity,
        (Domain::Onnx, "Softmax") => reductions::softmax,
        (Domain::Onnx, "LogSoftmax") => reductions::log_softmax,
        (Domain::Onnx, "ReduceSum") => reductions::reduce_sum,
        (Domain::Onnx, "ReduceMean") => reductions::reduce_mean,
        (Domain::Onnx, "MatMul") => linear::matmul,
        (Domain::Onnx, "Gemm") => linear::gemm,
        (Domain::Onnx, "Conv") => convolution::conv,
        (Domain::Onnx, "BatchNormalization") => norms::batch,
        (Domain::Onnx, "InstanceNormalization") => norms::instance,
        (Domain::Onnx, "LayerNormalization") => norms::layer,
        (Domain::Onnx, "Reshape") => shapes::reshape,
        (Domain::Onnx, "Transpose") => shapes::transpose,
        (Domain::Onnx, "Concat") => shapes::concat,
        (Domain::Onnx, "Split") => shapes::split,
        (Domain::Onnx, "Slice") => shapes::slice,
        (Domain::Onnx, "Pad") => shapes::pad,
        (Domain::Onnx, "Squeeze" | "Unsqueeze") => shapes::reshape,
        (Domain::Onnx, "Expand") => shapes::expand,
        (Domain::Microsoft, "MultiHeadAttention") => attention::multi_head,
        (Domain::Onnx, "Equal" | "Greater" | "GreaterOrEqual" | "Less") => return Some(Rule::Constant),
        (Domain::Onnx, "Shape" | "Size") => return Some(Rule::Constant),
        _ => return None,
    }))
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

/// Reshapes to the shape of another value, which may have one extent without a number.
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
