//! Convolutions so wide that their weight gradient is summed slab by slab.
//!
//! A convolution is linear in its kernel: the gradient at a tap is Σ dy · conv(x, that tap alone), which ONNX Runtime's
//! own convolution computes.

use brain_adapter::graph::{Builder, Dim, Op};
use brain_adapter::passes::autodiff::joint;
use brain_adapter::tensor::{DType, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::harness::{norm_error, run};

fn agrees(x: &[usize], kernel: &[usize], strides: &[i64], pads: &[i64]) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut numbers = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        Tensor::f32(shape, (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()).unwrap()
    };
    let mut g = Builder::new("wide");
    let batch = [&[Dim::BATCH], x[1..].iter().map(|&n| Dim::Known(n)).collect::<Vec<_>>().as_slice()].concat();
    let image = g.input("x", DType::F32, &batch);
    let w = g.input("w", DType::F32, &kernel.iter().map(|&n| Dim::Known(n)).collect::<Vec<_>>());
    let y = g.node(Op::new("Conv").ints("strides", strides).ints("pads", pads), &[Some(image), Some(w)]).unwrap();
    let y_shape: Vec<usize> = g.ty(y).shape.iter().map(|d| d.known().unwrap_or(x[0])).collect();
    g.output("y", y).unwrap();
    let graph = g.finish().unwrap();
    let joint = joint(&graph, &["y"], &["w"]).unwrap();
    let products = joint.nodes.iter().filter(|n| n.op.kind == "Gemm").count();
    assert!(products > 1, "one slab: {products} products");
    let taps: usize = kernel.iter().product();
    let mut feed =
        vec![("x".to_owned(), numbers(x)), ("w".to_owned(), numbers(kernel)), ("d.y".to_owned(), numbers(&y_shape))];
    let found = run("wide", &joint, &feed, &["d.w"]);
    let dy = feed[2].1.as_f32().unwrap().to_vec();
    let mut expected = Vec::new();
    for tap in 0..taps {
        let mut alone = vec![0f32; taps];
        alone[tap] = 1.0;
        feed[1].1 = Tensor::f32(kernel, alone).unwrap();
        let y = run("tap", &graph, &feed, &["y"]);
        expected.push(dy.iter().zip(y[0].as_f32().unwrap()).map(|(&d, &y)| f64::from(d) * f64::from(y)).sum());
    }
    let error = norm_error(found[0].as_f32().unwrap(), &expected);
    println!("{x:?} by {kernel:?}: {products} slabs, {error:.1e}");
    assert!(error <= 2e-5, "{error:.1e}");
}

#[test]
fn slabs_add_up() {
    agrees(&[2, 1, 5, 400, 400], &[1, 1, 3, 3, 3], &[1, 1, 1], &[1, 1, 1, 1, 1, 1]);
    agrees(&[1, 1, 9, 300, 300], &[1, 1, 3, 3, 3], &[2, 1, 1], &[1, 1, 1, 1, 1, 1]);
    // The first and last slabs meet nothing but padding.
    agrees(&[1, 1, 2, 500, 400], &[1, 1, 2, 3, 3], &[1, 1, 1], &[2, 0, 0, 2, 0, 1]);
    agrees(&[1, 2, 500, 700], &[1, 2, 3, 3], &[1, 1], &[1, 0, 1, 2]);
}
