//! Cases of products, convolutions, normalisations and attention, and of graphs of several nodes.

use brain_adapter::graph::Op;

use super::harness::{Row, one, row};

pub fn products() -> Vec<Row> {
    let mut rows = Vec::new();
    for shape in [
        "f:3,5 f:5,7",
        "f:n,5 f:5,1",
        "f:n,3,5 f:5,7",
        "f:3,5 f:2,5,7",
        "f:n,3,5 f:n,5,1",
        "f:2,1,3,5 f:4,5,2",
        "f:1,3,5 f:4,5,2",
        "f:n,1,3,5 f:2,5,1",
        "f:1,1 f:1,1",
        "f:n,3,5 c:5,7",
        "c:n,3,5 f:5,7",
    ] {
        rows.push(row(format!("MatMul {shape}"), shape, one(Op::new("MatMul"), &[])));
    }
    rows.push(row("MatMul of a transpose", "f:n,5,3 f:n,7,5", |g, x| {
        let (a, b) = (g.transpose(x[0], &[0, 2, 1])?, g.transpose(x[1], &[0, 2, 1])?);
        Ok(vec![g.matmul(a, b)?])
    }));
    rows.push(row("MatMul of a transpose of the batch", "f:3,5,2 f:2,5,7", |g, x| {
        let a = g.transpose(x[0], &[2, 0, 1])?;
        Ok(vec![g.matmul(a, x[1])?])
    }));
    rows.push(row("MatMul of itself", "f:3,3", |g, x| Ok(vec![g.matmul(x[0], x[0])?])));
    rows.push(row("MatMul with its transpose", "f:n,3,5", |g, x| {
        let t = g.transpose(x[0], &[0, 2, 1])?;
        Ok(vec![g.matmul(x[0], t)?])
    }));
    for (ta, a) in [(0, "n,5"), (1, "5,n")] {
        for (tb, b) in [(0, "5,7"), (1, "7,5")] {
            for bias in ["", " f:7"] {
                let op = Op::new("Gemm").int("transA", ta).int("transB", tb);
                let operands = format!("f:{a} f:{b}{bias}");
                rows.push(row(format!("Gemm {ta} {tb} {operands}"), operands, one(op, &[])));
            }
        }
    }
    rows.push(row("Gemm of itself", "f:3,3", |g, x| Ok(vec![g.gemm(x[0], x[0], None)?])));
    rows
}

pub fn convolutions() -> Vec<Row> {
    // Operand, kernel, strides, pads.
    let forms: &[(&str, &str, &[i64], &[i64])] = &[
        ("n,3,7", "2,3,3", &[1], &[1, 1]),
        ("n,3,7", "2,3,3", &[1], &[2, 0]),
        ("2,1,7", "3,1,2", &[2], &[0, 0]),
        ("2,1,7", "3,1,1", &[3], &[0, 0]),
        ("1,2,7", "1,2,5", &[3], &[1, 3]),
        ("1,2,3", "2,2,3", &[1], &[0, 0]),
        ("1,2,5", "2,2,1", &[1], &[1, 2]),
        ("1,2,5", "2,2,2", &[1], &[3, 2]),
        ("n,3,5,7", "5,3,3,3", &[1, 1], &[1, 1, 1, 1]),
        ("n,3,5,3", "2,3,1,1", &[1, 1], &[0, 0, 0, 0]),
        ("2,3,5,7", "2,3,3,3", &[2, 1], &[1, 0, 0, 2]),
        ("2,1,6,7", "2,1,2,3", &[2, 3], &[0, 1, 1, 0]),
        ("1,2,5,5", "1,2,5,5", &[1, 1], &[0, 0, 0, 0]),
        ("1,2,7,5", "3,2,3,1", &[1, 1], &[2, 0, 1, 0]),
        ("n,2,3,5,3", "3,2,3,3,3", &[1, 1, 1], &[1, 1, 1, 1, 1, 1]),
        ("1,2,5,3,4", "3,2,3,3,3", &[1, 1, 1], &[1, 1, 1, 1, 1, 1]),
        ("2,3,5,3,4", "1,3,2,3,1", &[1, 1, 1], &[1, 0, 0, 0, 2, 0]),
        ("1,1,3,3,5", "2,1,3,1,2", &[1, 1, 1], &[2, 0, 1, 0, 0, 0]),
        ("n,1,9,3,3", "3,1,3,3,3", &[4, 1, 1], &[1, 1, 1, 1, 1, 1]),
        ("1,2,8,5,3", "2,2,3,3,3", &[2, 2, 1], &[1, 0, 1, 0, 1, 1]),
        ("n,3,5,3,3", "1,3,1,1,1", &[1, 1, 1], &[0, 0, 0, 0, 0, 0]),
    ];
    let mut rows = Vec::new();
    for &(x, w, strides, pads) in forms {
        let channels = w.split(',').next().unwrap();
        for bias in [format!(" f:{channels}"), String::new()] {
            let kernel: Vec<i64> = w.split(',').skip(2).map(|k| k.parse().unwrap()).collect();
            let op = Op::new("Conv").ints("kernel_shape", &kernel).ints("strides", strides).ints("pads", pads);
            let operands = format!("f:{x} f:{w}{bias}");
            rows.push(row(format!("Conv {operands} by {strides:?} in {pads:?}"), operands, one(op, &[])));
        }
    }
    rows.push(row("Conv without attributes", "f:2,2,5 f:3,2,3", one(Op::new("Conv"), &[])));
    rows.push(row("Conv by a fixed kernel", "f:2,2,5 c:3,2,3", one(Op::new("Conv"), &[])));
    rows.push(row("Conv of a fixed operand", "c:2,2,5 f:3,2,3", one(Op::new("Conv"), &[])));
    rows
}

pub fn norms() -> Vec<Row> {
    let eps = |kind: &'static str| Op::new(kind).float("epsilon", 1e-2);
    let mut rows = Vec::new();
    for x in ["n,3", "n,3,5", "2,1,3,5", "1,5,1,3,2"] {
        let c = x.split(',').nth(1).unwrap();
        let operands = format!("f:{x} f:{c} f:{c} c:{c} q:{c}");
        rows.push(row(format!("BatchNormalization {operands}"), operands, one(eps("BatchNormalization"), &[])));
    }
    for x in ["n,3,5", "2,1,3,5", "1,5,1,3,2", "n,3,7,1"] {
        let c = x.split(',').nth(1).unwrap();
        let operands = format!("f:{x} f:{c} f:{c}");
        rows.push(row(format!("InstanceNormalization {operands}"), operands, one(eps("InstanceNormalization"), &[])));
    }
    for x in ["7", "n,5", "n,3,5", "2,1,3,7"] {
        let c = x.split(',').next_back().unwrap();
        for bias in ["f", "c"] {
            let operands = format!("f:{x} f:{c} {bias}:{c}");
            let op = eps("LayerNormalization").int("axis", -1);
            rows.push(row(format!("LayerNormalization {operands}"), operands, one(op, &[])));
        }
    }
    rows
}

pub fn attention() -> Vec<Row> {
    let mut rows = Vec::new();
    for (heads, shapes) in [
        (1, "f:n,3,2 f:n,5,2 f:n,5,2"),
        (3, "f:n,5,6 f:n,3,6 f:n,3,6"),
        (2, "f:2,1,6 f:2,7,6 f:2,7,6"),
        (5, "f:1,3,5 f:1,1,5 f:1,1,5"),
        (2, "f:n,5,4 c:n,3,4 c:n,3,4"),
        // Two tiles; a last row that goes along with the tile before; three tiles.
        (1, "f:1,700,1 f:1,3,1 f:1,3,1"),
        (1, "f:1,1025,1 f:1,3,1 f:1,3,1"),
        (2, "f:2,1100,2 f:2,3,2 f:2,3,2"),
    ] {
        let op = Op::microsoft("MultiHeadAttention").int("num_heads", heads);
        rows.push(row(format!("MultiHeadAttention {heads} {shapes}"), shapes, one(op, &[])));
    }
    rows.push(row("MultiHeadAttention of itself", "f:n,3,4", |g, x| {
        Ok(vec![g.node(Op::microsoft("MultiHeadAttention").int("num_heads", 2), &[Some(x[0]); 3])?])
    }));
    rows
}

/// Values that are used several times, results that lead to other results, and what does not count.
pub fn several() -> Vec<Row> {
    vec![
        row("used four times", "f:3,5", |g, x| {
            let e = g.unary("Exp", x[0])?;
            let (a, b) = (g.mul(e, x[0])?, g.add(e, x[0])?);
            let c = g.mul(a, b)?;
            Ok(vec![g.sub(c, e)?])
        }),
        row("a result that leads to another", "f:n,5", |g, x| {
            let e = g.unary("Exp", x[0])?;
            let s = g.reduce_sum(e, &[1], true)?;
            Ok(vec![e, g.div(e, s)?, s])
        }),
        row("of length 1", "f:n,5", |g, x| {
            let square = g.mul(x[0], x[0])?;
            let sum = g.reduce_sum(square, &[1], true)?;
            let length = g.unary("Sqrt", sum)?;
            Ok(vec![g.div(x[0], length)?])
        }),
        row("the gradient is that of the result", "f:3,5 f:3,5", |g, x| Ok(vec![g.add(x[0], x[1])?])),
        row("normed by its own statistics", "f:n,3,5 f:3,1", |g, x| {
            let mean = g.reduce_mean(x[0], &[0, 2], true)?;
            let centred = g.sub(x[0], mean)?;
            let square = g.mul(centred, centred)?;
            let var = g.reduce_mean(square, &[0, 2], true)?;
            let deviation = g.unary("Sqrt", var)?;
            let factor = g.div(x[1], deviation)?;
            Ok(vec![g.mul(centred, factor)?])
        }),
        row("a broadcast value used in two shapes", "f:1,5 f:n,5 f:3,1,5", |g, x| {
            let (a, b) = (g.mul(x[0], x[1])?, g.mul(x[0], x[2])?);
            let (a, b) = (g.reduce_sum(a, &[0], true)?, g.reduce_mean(b, &[0, 1], false)?);
            Ok(vec![g.add(a, b)?])
        }),
    ]
}
