//! A table of operators over operands, with the type that must follow, or a refusal.

use brain_adapter::graph::{Attribute, Builder, Dim, Graph, Op, ValueId};
use brain_adapter::tensor::DType;

const B: Dim = Dim::BATCH;
const K: fn(usize) -> Dim = Dim::Known;

/// Operands by a short name: floats `f:2,3`, halves `h:2`, integers `i:2` (64 bits), `w:2` (32), `s:2` and
/// `u:2` (8, with and without a sign), booleans `b:2`; `n` is the symbol `batch`.
/// `=1,2` is a constant of integers, `_` an operand left out.
pub fn operand(g: &mut Builder, text: &str) -> Option<ValueId> {
    if let Some(values) = text.strip_prefix('=') {
        let values: Vec<i64> = values.split(',').filter(|v| !v.is_empty()).map(|v| v.parse().unwrap()).collect();
        return Some(g.ints(&values));
    }
    let (kind, dims) = text.split_once(':')?;
    let dims = dims.split(',').filter(|d| !d.is_empty());
    let dims: Vec<Dim> = dims.map(|d| if d == "n" { B } else { K(d.parse().unwrap()) }).collect();
    let dtype = match kind {
        "f" => DType::F32,
        "h" => DType::F16,
        "i" => DType::I64,
        "b" => DType::Bool,
        "u" => DType::U8,
        "s" => DType::I8,
        "w" => DType::I32,
        other => panic!("{other}"),
    };
    Some(g.input("x", dtype, &dims))
}

/// A graph of that operator alone, with as many results.
pub fn graph(op: Op, operands: &str, outputs: usize) -> brain_adapter::Result<Graph> {
    let mut g = Builder::new("test");
    let inputs: Vec<Option<ValueId>> = operands.split_whitespace().map(|text| operand(&mut g, text)).collect();
    let results = g.node_multi(op, &inputs, outputs)?;
    for (i, id) in results.into_iter().enumerate() {
        g.output(&format!("y{i}"), id)?;
    }
    g.finish()
}

pub fn op(kind: &'static str) -> Op {
    Op::new(kind)
}

fn conv(strides: &[i64], pads: &[i64]) -> Op {
    op("Conv").ints("strides", strides).ints("pads", pads)
}

fn heads(n: i64) -> Op {
    Op::microsoft("MultiHeadAttention").int("num_heads", n)
}

fn to_float() -> Op {
    Op::microsoft("MatMulIntegerToFloat")
}

fn blocks(k: i64, n: i64, bits: i64, block: i64) -> Op {
    let op = Op::microsoft("MatMulNBits").int("K", k).int("N", n);
    op.int("bits", bits).int("block_size", block).int("accuracy_level", 4)
}

/// Operator, operands, and the result; `!` for a refusal.
pub fn rows() -> Vec<(Op, &'static str, &'static str)> {
    let to = |t| op("Cast").with("to", Attribute::Type(t));
    let gemm = || op("Gemm").int("transB", 1);
    let norm = || op("LayerNormalization").int("axis", -1);
    vec![
        (op("Relu"), "f:n,3", "float32[batch, 3]"),
        (op("Relu"), "i:3", "!"),
        (op("Relu"), "", "!"),
        (op("Relu"), "f:3 f:3", "!"),
        (op("Nonsense"), "f:3", "!"),
        (Op::microsoft("Relu"), "f:3", "!"),
        (op("MultiHeadAttention"), "f:n,4,6 f:n,4,6 f:n,4,6", "!"),
        (op("Add"), "f:n,3 f:3", "float32[batch, 3]"),
        (op("Add"), "f:n,3 f:2", "!"),
        (op("Add"), "f:3 h:3", "!"),
        (op("Add"), "f:3", "!"),
        (op("Add"), "f:3 f:3 f:3", "!"),
        (op("And"), "b:2 b:2", "bool[2]"),
        (op("And"), "f:2 f:2", "!"),
        (op("Equal"), "i:2 i:1", "bool[2]"),
        (op("Where"), "b:2 f:2 f:", "float32[2]"),
        (op("Where"), "f:2 f:2 f:2", "!"),
        (op("Where"), "b:2 f:2 h:2", "!"),
        (to(DType::F16), "f:n,2", "float16[batch, 2]"),
        (op("Cast"), "f:2", "!"),
        (op("Pow"), "f:n,3 f:", "float32[batch, 3]"),
        (op("Pow"), "f:n,3 i:", "!"),
        (op("Abs"), "f:n,3", "float32[batch, 3]"),
        (op("Abs"), "i:n,3", "!"),
        (op("ReduceMax").int("keepdims", 1), "f:n,3,4 =-1", "float32[batch, 3, 1]"),
        (op("ReduceMin").int("keepdims", 0), "f:n,3,4 =1,2", "float32[batch]"),
        (op("QuantizeLinear"), "f:n,3 f: u:", "uint8[batch, 3]"),
        (op("QuantizeLinear"), "f:n,3 f: s:", "int8[batch, 3]"),
        (op("QuantizeLinear"), "f:n,3 f:3 u:3", "!"),
        (op("QuantizeLinear"), "f:n,3 f: i:", "!"),
        (op("QuantizeLinear"), "u:n,3 f: u:", "!"),
        (op("DequantizeLinear"), "u:n,3 f: u:", "float32[batch, 3]"),
        (op("DequantizeLinear").int("axis", 0), "s:4,3 f:4 s:4", "float32[4, 3]"),
        (op("DequantizeLinear").int("axis", 0), "w:4 f:4 w:4", "float32[4]"),
        (op("DequantizeLinear").int("axis", 0), "s:4,3 f:3 s:3", "!"),
        (op("DequantizeLinear"), "s:4,3 f: u:", "!"),
        (op("MatMulInteger"), "u:n,5,3 s:3,4 u:", "int32[batch, 5, 4]"),
        (op("MatMulInteger"), "u:n,3 u:3,4 u:", "int32[batch, 4]"),
        (op("MatMulInteger"), "u:n,3 s:4,3 u:", "!"),
        (op("MatMulInteger"), "u:n,3 s:3,4 s:", "!"),
        (op("MatMulInteger"), "f:n,3 s:3,4 u:", "!"),
        (to_float(), "u:n,5,3 s:3,4 f: f:4 u:", "float32[batch, 5, 4]"),
        (to_float(), "u:n,3 s:3,4 f: f:3 u:", "!"),
        (to_float(), "u:n,3 s:3,4 f:3 f:4 u:", "!"),
        (to_float(), "u:n,3 s:3,4 f: f:4 s:", "!"),
        (blocks(40, 6, 4, 32), "f:n,40 u:6,2,16 f:12 u:6", "float32[batch, 6]"),
        (blocks(40, 6, 8, 32), "f:n,7,40 u:6,2,32 f:12", "float32[batch, 7, 6]"),
        (blocks(40, 6, 8, 32), "f:n,40 u:6,2,16 f:12", "!"),
        (blocks(40, 6, 8, 32), "f:n,41 u:6,2,32 f:12", "!"),
        (blocks(40, 6, 3, 32), "f:n,40 u:6,2,12 f:12", "!"),
        (blocks(40, 6, 8, 24), "f:n,40 u:6,2,24 f:12", "!"),
        (op("MatMul"), "f:n,2,3 f:3,4", "float32[batch, 2, 4]"),
        (op("MatMul"), "f:2,3 f:2,3", "!"),
        (op("MatMul"), "f:3 f:3,2", "!"),
        (op("MatMul"), "f:2,3 h:3,4", "!"),
        (op("MatMul"), "f:5,2,3 f:4,3,2", "!"),
        (gemm(), "f:n,3 f:4,3 f:4", "float32[batch, 4]"),
        (gemm(), "f:n,3 f:3,4", "!"),
        (gemm(), "f:n,3 f:4,3 f:3", "!"),
        (gemm(), "f:n,3 h:4,3", "!"),
        (gemm(), "f:n,3 f:4,3 h:4", "!"),
        (gemm(), "f:2,n,3 f:4,3", "!"),
        (op("Gemm"), "f:n,3 f:4,3", "!"),
        (conv(&[1, 1], &[1, 1, 1, 1]), "f:n,2,5,6 f:4,2,3,3", "float32[batch, 4, 5, 6]"),
        (conv(&[2, 1], &[0, 0, 0, 0]), "f:n,2,5,6 f:4,2,2,2 f:4", "float32[batch, 4, 2, 5]"),
        (conv(&[1, 1], &[]), "f:n,2,5,6 f:4,3,3,3", "!"),
        (conv(&[1, 1], &[]), "f:n,2,2,2 f:4,2,3,3", "!"),
        (conv(&[0, 1], &[]), "f:n,2,5,6 f:4,2,3,3", "!"),
        (conv(&[1, 1], &[]), "f:n,2,5,6 f:4,2,3", "!"),
        (conv(&[1, 1], &[]), "f:n,2,5,6 f:4,2,3,3 f:3", "!"),
        (conv(&[1, 1], &[]), "f:n,2,n,6 f:4,2,3,3", "!"),
        (conv(&[1, 1], &[]).int("group", 2), "f:n,2,5,6 f:4,2,3,3", "!"),
        (conv(&[1, 1], &[]).ints("dilations", &[2, 1]), "f:n,2,5,6 f:4,2,3,3", "!"),
        (op("BatchNormalization"), "f:n,2,5 f:2 f:2 f:2 f:2", "float32[batch, 2, 5]"),
        (op("BatchNormalization"), "f:n,2,5 f:2 f:2 f:2 f:3", "!"),
        (op("BatchNormalization"), "f:n,2,5 f:2 f:2 f:2", "!"),
        (op("BatchNormalization"), "f:2 f:2 f:2 f:2 f:2", "!"),
        (op("InstanceNormalization"), "f: f:2 f:2", "!"),
        (norm(), "f:n,4 f:4 f:4", "float32[batch, 4]"),
        (norm(), "f:n,4 f:3 f:4", "!"),
        (norm(), "f:n,4 f:4 f:3", "!"),
        (norm(), "f: f: f:", "!"),
        (op("LayerNormalization").int("axis", 0), "f:n,4 f:4", "!"),
        (op("Reshape"), "f:n,6 =0,2,-1", "float32[batch, 2, 3]"),
        (op("Reshape"), "f:n,6 =0,4,-1", "!"),
        (op("Reshape"), "f:n,6 =-1,2", "float32[?, 2]"),
        (op("Reshape"), "f:n,6 =-1,-1", "!"),
        (op("Reshape"), "f:2,6 =-1,-1", "!"),
        (op("Reshape"), "f:2,6 =2,-2", "!"),
        (op("Reshape"), "f:2,6 =3,5", "!"),
        (op("Reshape"), "f:2,6 =9223372036854775807,9223372036854775807", "!"),
        (op("Reshape"), "f:2 =0,0", "!"),
        (op("Reshape"), "f:2,6 i:2", "!"),
        (op("Transpose").ints("perm", &[2, 0, 1]), "f:n,3,4", "float32[4, batch, 3]"),
        (op("Transpose").ints("perm", &[0, 0, 1]), "f:n,3,4", "!"),
        (op("Transpose").ints("perm", &[0, 1]), "f:n,3,4", "!"),
        (op("Transpose").ints("perm", &[0, -1]), "f:n,3", "!"),
        (op("Concat").int("axis", 1), "f:n,3 f:n,4", "float32[batch, 7]"),
        (op("Concat").int("axis", 0), "f:n,3 f:n,3", "!"),
        (op("Concat").int("axis", 1), "f:n,3 h:n,4", "!"),
        (op("Concat").int("axis", 2), "f:n,3 f:n,4", "!"),
        (op("Concat").int("axis", 1), "f:n,3 f:2,4", "!"),
        (op("Split").int("axis", 1), "f:n,3 =3", "float32[batch, 3]"),
        (op("Split").int("axis", 1), "f:n,3 =1,2", "!"),
        (op("Split").int("axis", 1), "f:n,3 =4", "!"),
        (op("Slice"), "f:n,9 =1 =-1 =1", "float32[batch, 7]"),
        (op("Slice"), "f:n,9 =5 =2 =1", "float32[batch, 0]"),
        (op("Slice"), "f:n,9 =0 =1 =0", "float32[?, 9]"),
        (op("Slice"), "f:4,9 =0,0 =1 =0", "!"),
        (op("Slice"), "f:4,9 =0 =1 =2", "!"),
        (op("Slice"), "f:4,9 =0 =1", "!"),
        (op("Pad"), "f:n,3 =0,1,0,2", "float32[batch, 6]"),
        (op("Pad"), "f:n,3 =1,0,0,0", "!"),
        (op("Pad"), "f:n,3 =0,1", "!"),
        (op("Pad"), "f:n,3 =0,-1,0,0", "!"),
        (op("Unsqueeze"), "f:n,3 =1", "float32[batch, 1, 3]"),
        (op("Unsqueeze"), "f:3 =-2,2", "float32[3, 1, 1]"),
        (op("Unsqueeze"), "f:3 =0,-1", "float32[1, 3, 1]"),
        (op("Unsqueeze"), "f:3 =1,1", "!"),
        (op("Unsqueeze"), "f:3 =3", "!"),
        (op("Squeeze"), "f:n,1,3,1 =1,-1", "float32[batch, 3]"),
        (op("Squeeze"), "f:n,1,3 =2", "!"),
        (op("Squeeze"), "f:n,1 =0", "!"),
        (op("Shape").int("start", 1), "f:n,2,3", "int64[2]"),
        (op("Shape").int("start", 4), "f:n,2,3", "!"),
        (op("Gather"), "f:9,4 i:n,2", "float32[batch, 2, 4]"),
        (op("Gather"), "f:9,4 f:2", "!"),
        (op("Gather").int("axis", 1), "f:9,4 i:2", "float32[9, 2]"),
        (op("Gather").int("axis", 2), "f:9,4 i:2", "!"),
        (op("Expand"), "f:1,4 =3,4", "float32[3, 4]"),
        (op("Expand"), "f:4 i:2", "float32[?, 4]"),
        (op("Expand"), "f:1 i:2", "float32[?, ?]"),
        (op("Expand"), "f:2,4 =3,4", "!"),
        (op("Expand"), "f:2,4 i:1", "!"),
        (op("Size"), "f:2,n", "int64[]"),
        (op("Slice"), "f:9 =1 =9 =0 =3", "float32[3]"),
        (op("Slice"), "f:9 =1 =9 =0 =-1", "!"),
        (op("Slice"), "f:n,9 i:1 i:1 =0", "float32[?, 9]"),
        (op("Slice"), "f:n,9 i:2 i:2 =0", "!"),
        (
            op("ConvTranspose").ints("strides", &[2]).ints("output_padding", &[1]),
            "f:n,3,5 f:3,2,4",
            "float32[batch, 2, 13]",
        ),
        (op("ConvTranspose"), "f:n,3,5 f:2,3,4", "!"),
        (op("ReduceMean"), "f:n,3,4 =1,-1", "float32[batch, 1, 1]"),
        (op("ReduceSum").int("keepdims", 0), "f:n,3,4 =1", "float32[batch, 4]"),
        (op("ReduceSum"), "f:n,3 =2", "!"),
        (op("ReduceSum"), "f:n,3 =", "!"),
        (heads(2), "f:n,4,6 f:n,5,6 f:n,5,6", "float32[batch, 4, 6]"),
        (heads(4), "f:n,4,6 f:n,5,6 f:n,5,6", "!"),
        (heads(0), "f:n,4,6 f:n,5,6 f:n,5,6", "!"),
        (heads(2), "f:n,4,6 f:5,6 f:5,6", "!"),
        (heads(2), "f:3,4,6 f:2,5,6 f:2,5,6", "!"),
        (heads(2), "f:n,4,6 f:n,5,6 f:n,5,4", "!"),
    ]
}
