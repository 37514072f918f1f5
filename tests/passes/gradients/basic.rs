//! Cases of operators on elements, reductions, and operators that move elements.

use brain_adapter::graph::{Builder, Op, ValueId};
use brain_adapter::tensor::DType;

use super::harness::{Row, one, row};

/// Operators of two operands, broadcast every way there is.
pub fn pairs() -> Vec<Row> {
    let shapes = [
        "A:3,5 B:3,5",
        "A:3,5 B:5",
        "A:5 B:3,5",
        "A:3,1 B:1,5",
        "A:1,5 B:3,1",
        "A: B:3,5",
        "A:3,5 B:",
        "A: B:",
        "A:n,3 B:1,3",
        "A:n,1 B:3",
        "A:n,7 B:n,1",
        "A:1 B:n,5",
        "A:2,1,3 B:5,1",
        "A:1,1 B:1",
        "A:1,1,1 B:7",
        "A:n,5 q:5",
        "q:1,5 B:n,1",
    ];
    let mut rows = Vec::new();
    for kind in ["Add", "Sub", "Mul", "Div", "Max", "Min"] {
        let divisor = if kind == "Div" { "p" } else { "f" };
        for shape in shapes {
            let shape = shape.replace('A', "f").replace('B', divisor);
            rows.push(row(format!("{kind} {shape}"), shape, one(Op::new(kind), &[])));
        }
        // The same value on both sides; for Max and Min that is a tie everywhere, with a whole gradient all the same.
        let operands = format!("{divisor}:n,3");
        rows.push(row(format!("{kind} of itself"), operands, move |g, x| {
            let y = g.binary(kind, x[0], x[0])?;
            Ok(vec![g.mul(y, x[0])?])
        }));
    }
    rows
}

pub fn elementwise() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, letter) in
        [("Neg", 'f'), ("Exp", 'f'), ("Relu", 'f'), ("Gelu", 'f'), ("Identity", 'f'), ("Sqrt", 'p'), ("Log", 'p')]
    {
        for shape in ["3,5", "", "n,1,7", "1"] {
            rows.push(row(format!("{kind} {shape}"), format!("{letter}:{shape}"), one(Op::new(kind), &[])));
        }
    }
    rows.push(row("Gelu far out", "w:7,15", one(Op::new("Gelu"), &[])));
    rows.push(row("Relu far out", "w:7,5", one(Op::new("Relu"), &[])));
    rows
}

fn reduction(kind: &'static str, keep: bool) -> Op {
    Op::new(kind).int("keepdims", keep.into())
}

pub fn reductions() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in ["Softmax", "LogSoftmax"] {
        for shape in ["f:3,5", "f:n,3,7", "f:1,1", "f:5", "f:n,1", "w:3,7"] {
            rows.push(row(format!("{kind} {shape}"), shape, one(Op::new(kind).int("axis", -1), &[])));
        }
        rows.push(row(format!("{kind} axis 1"), "f:3,5", one(Op::new(kind).int("axis", 1), &[])));
    }
    for kind in ["ReduceSum", "ReduceMean"] {
        for keep in [true, false] {
            let mut push = |shape: &str, axes: &'static [&'static [i64]]| {
                rows.push(row(format!("{kind} {shape} {axes:?} {keep}"), shape, one(reduction(kind, keep), axes)));
            };
            push("f:3,5", &[&[1]]);
            push("f:3,5", &[&[-2]]);
            push("f:5,1,3", &[&[0, -1]]);
            push("f:5,1,3", &[&[-1, 0]]);
            push("f:n,3,5", &[&[0]]);
            push("f:n,3,5", &[&[-2]]);
            push("f:n,3,5", &[&[2, 0]]);
            push("f:n,3,5", &[&[0, 1, 2]]);
            push("f:7", &[&[0]]);
        }
    }
    rows
}

pub fn moves() -> Vec<Row> {
    let op = Op::new;
    let mut rows = vec![
        row("Reshape", "f:3,5,2", one(op("Reshape"), &[&[5, 6]])),
        row("Reshape to rank 0", "f:1,1", |g, x| Ok(vec![g.reshape(x[0], &[])?])),
        row("Reshape of rank 0", "f:", one(op("Reshape"), &[&[1, 1]])),
        row("Reshape batch", "f:n,3,5", one(op("Reshape"), &[&[0, 5, -1]])),
        row("Reshape batch away", "f:n,3,5", one(op("Reshape"), &[&[-1, 5]])),
        row("Transpose", "f:n,3,5", one(op("Transpose").ints("perm", &[2, 0, 1]), &[])),
        row("Transpose 4", "f:2,3,1,5", one(op("Transpose").ints("perm", &[3, 1, 0, 2]), &[])),
        row("Squeeze", "f:n,1,3,1", one(op("Squeeze"), &[&[1, -1]])),
        row("Squeeze all", "f:1", one(op("Squeeze"), &[&[0]])),
        row("Unsqueeze", "f:n,3", one(op("Unsqueeze"), &[&[-1, 1]])),
        row("Unsqueeze scalar", "f:", one(op("Unsqueeze"), &[&[0, 1]])),
        row("Expand", "f:3,1", one(op("Expand"), &[&[2, 3, 5]])),
        row("Expand scalar", "f:", one(op("Expand"), &[&[3, 5]])),
        row("Expand by ones", "f:3,5", one(op("Expand"), &[&[1, 1]])),
        row("Concat", "f:n,3 f:n,1 c:n,5", one(op("Concat").int("axis", -1), &[])),
        row("Concat 0", "f:3,2 f:1,2 f:5,2", one(op("Concat").int("axis", 0), &[])),
        row("Concat of one", "f:3,2", one(op("Concat").int("axis", 1), &[])),
        row("Concat of itself", "f:n,3 f:n,2", |g, x| Ok(vec![g.concat(&[x[0], x[1], x[0]], 1)?])),
        row("Slice", "f:n,9", one(op("Slice"), &[&[1], &[-1], &[1]])),
        row("Slice from the end", "f:n,9", one(op("Slice"), &[&[-5], &[-2], &[-1]])),
        row("Slice of all", "f:3,9", one(op("Slice"), &[&[0], &[i64::MAX], &[1]])),
        row("Slice two axes", "f:5,3,7", one(op("Slice"), &[&[-7, 2], &[3, 9], &[2, 0]])),
        row("Slice by ones", "f:5,3", one(op("Slice"), &[&[1], &[4], &[0], &[1]])),
        row("Pad", "f:3,5", one(op("Pad"), &[&[1, 0, 0, 2]])),
        row("Pad batch", "f:n,3,1", one(op("Pad"), &[&[0, 1, 2, 0, 0, 3]])),
        row("Pad by nothing", "f:n,3", one(op("Pad"), &[&[0, 0, 0, 0]])),
    ];
    let split = |kept: &'static [usize]| {
        move |g: &mut Builder, x: &[ValueId]| {
            let parts = g.split(x[0], &[1, 5, 3], -1)?;
            Ok(kept.iter().map(|&i| parts[i]).collect())
        }
    };
    rows.push(row("Split", "f:n,9", split(&[0, 1, 2])));
    rows.push(row("Split, the first part alone", "f:n,9", split(&[0])));
    rows.push(row("Split, the last two parts", "f:3,9", split(&[1, 2])));
    rows.push(row("Split, a part without a gradient that is infinite", "f:3,9", |g, x| {
        let (first, rest) = (g.slice(x[0], 1, 0, 1)?, g.slice(x[0], 1, 1, 9)?);
        let infinity = g.scalar(f32::INFINITY);
        let infinite = g.add(first, infinity)?;
        let both = g.concat(&[infinite, rest], 1)?;
        Ok(vec![g.split(both, &[1, 8], 1)?[1]])
    }));
    rows
}

/// What has no derivative next to what has one.
pub fn constants() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in ["Equal", "Greater", "GreaterOrEqual", "Less"] {
        rows.push(row(kind, "f:n,7 c:7", move |g, x| {
            let hit = g.binary(kind, x[0], x[1])?;
            let hit = g.cast(hit, DType::F32)?;
            let chosen = g.mul(hit, x[0])?;
            Ok(vec![g.add(chosen, x[0])?])
        }));
    }
    rows.push(row("Size", "f:n,5", |g, x| {
        let size = g.unary("Size", x[0])?;
        let size = g.cast(size, DType::F32)?;
        Ok(vec![g.div(x[0], size)?])
    }));
    rows.push(row("Shape", "f:n,5 f:1,5", |g, x| {
        let shape = g.unary("Shape", x[0])?;
        let wide = g.binary("Expand", x[1], shape)?;
        let wide = g.declare(wide, &g.ty(x[0]).shape.clone())?;
        Ok(vec![g.mul(wide, x[0])?])
    }));
    rows
}
