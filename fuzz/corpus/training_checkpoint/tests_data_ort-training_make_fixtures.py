#!/usr/bin/env python3
"""Makes this folder's vectors but for scaled_*.npz: python make_fixtures.py with the packages of
scripts/ort119-requirements.txt (no PyTorch).

ms/        checkpoints by artifacts.generate_artifacts. Its graphs (com.microsoft gradient operators) are trained for the
           expected values, with the constants of torch.optim.AdamW (adam_mode 0, eps 1e-8, decay 0.01), and not kept
portable/  the same model as one set of files that stock ONNX Runtime and the training runtime both run: standard operators
           and InPlaceAccumulatorV2/AdamWOptimizer as model-local functions; gradients written by hand
feeds.npz  3 steps of `input` [3,4,2,6,6] and `labels` [3,4]
"""
import json, os, shutil, subprocess, sys, tempfile
HERE = os.path.dirname(os.path.abspath(__file__)); os.chdir(HERE)
TOOLS = os.path.join(HERE, "..", "..", "ort_training"); sys.path.insert(0, TOOLS)
import train  # noqa: F401  (stubs the packages that import torch)
import numpy as np, onnx
from onnx import helper as h, TensorProto as T, numpy_helper as nh
from onnxruntime.training import artifacts
import odtc

OPSET = 17
rng = np.random.default_rng(0)
PARAMS = {k: v.astype(np.float32) for k, v in {
    "conv.weight": rng.normal(0, .3, (4, 2, 3, 3)), "conv.bias": rng.normal(0, .1, (4,)),
    "ln.weight": 1 + rng.normal(0, .1, (36,)), "ln.bias": rng.normal(0, .1, (36,)),
    "fc.weight": rng.normal(0, .1, (144, 3)), "fc.bias": rng.normal(0, .1, (3,)),
    "scale": np.array(0.3)}.items()}   # a rank-0 parameter, as logit_scale
FROZEN = ["ln.bias"]
TRAIN = [k for k in PARAMS if k not in FROZEN]
vi = h.make_tensor_value_info
seq = lambda n: h.make_tensor_sequence_value_info(n, T.FLOAT, None)


class G:
    def __init__(s): s.nodes, s.init = [], {}
    def c(s, a): n = f"const_{len(s.init)}"; s.init[n] = np.asarray(a); return n
    def __call__(s, op, ins, out=None, domain="", **kw):
        outs = out if isinstance(out, list) else [out or f"{op}_{len(s.nodes)}"]
        s.nodes.append(h.make_node(op, ins, outs, name=f"{op}_{len(s.nodes)}", domain=domain, **kw)); return outs[0]
    def inits(s): return [nh.from_array(v, k) for k, v in s.init.items()]


def forward(b, loss=True):
    i = np.int64
    b("Conv", ["input", "conv.weight", "conv.bias"], "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    b("Relu", ["c"], "r")
    b("Reshape", ["r", b.c(np.array([0, 4, 36], i))], "r1")
    b("LayerNormalization", ["r1", "ln.weight", "ln.bias"], ["n", "ln_mean", "ln_istd"], axis=-1, epsilon=1e-5)
    b("Reshape", ["n", b.c(np.array([0, -1], i))], "f")
    b("MatMul", ["f", "fc.weight"], "m"); b("Add", ["m", "fc.bias"], "pre")
    b("Exp", ["scale"], "es"); b("Mul", ["pre", "es"], "logits")
    if loss: b("SoftmaxCrossEntropyLoss", ["logits", "labels"], ["loss", "log_prob"], reduction="mean")


def backward(b):
    f, i = np.float32, np.int64
    oh = b("OneHot", ["labels", b.c(np.array([3], i)), b.c(np.array([0, 1], f))], axis=-1)
    n = b("Cast", [b("Gather", [b("Shape", ["labels"]), b.c(np.array(0, i))])], to=T.FLOAT)
    d = b("Div", [b("Sub", [b("Exp", ["log_prob"]), oh]), n], "logits_grad")
    b("ReduceSum", [b("Mul", [d, "logits"])], "scale_grad", keepdims=0)
    dl = b("Mul", [d, "es"], "pre_grad")
    b("ReduceSum", [dl, b.c(np.array([0], i))], "fc.bias_grad", keepdims=0)
    b("Gemm", ["f", dl], "fc.weight_grad", transA=1)
    dn = b("Reshape", [b("Gemm", [dl, "fc.weight"], transB=1), b("Shape", ["n"])], "n_grad")
    xh = b("Mul", [b("Sub", ["r1", "ln_mean"]), "ln_istd"])
    b("ReduceSum", [b("Mul", [dn, xh]), b.c(np.array([0, 1], i))], "ln.weight_grad", keepdims=0)
    g = b("Mul", [dn, "ln.weight"])
    m1 = b("ReduceMean", [g], axes=[-1]); m2 = b("ReduceMean", [b("Mul", [g, xh])], axes=[-1])
    dr1 = b("Mul", [b("Sub", [b("Sub", [g, m1]), b("Mul", [xh, m2])]), "ln_istd"])
    mask = b("Cast", [b("Greater", ["r", b.c(np.array(0, f))])], to=T.FLOAT)
    dc = b("Mul", [b("Reshape", [dr1, b("Shape", ["r"])]), mask], "c_grad")
    b("ReduceSum", [dc, b.c(np.array([0, 2, 3], i))], "conv.bias_grad", keepdims=0)
    xt, dt = b("Transpose", ["input"], perm=[1, 0, 2, 3]), b("Transpose", [dc], perm=[1, 0, 2, 3])
    b("Transpose", [b("Conv", [xt, dt], pads=[1, 1, 1, 1])], "conv.weight_grad", perm=[1, 0, 2, 3])


def accumulator():
    n = h.make_node
    return h.make_function("com.microsoft", "InPlaceAccumulatorV2", ["buf", "val", "reset"], ["flag", "acc"], [
        n("Constant", [], ["z"], value_float=0.0), n("Where", ["reset", "z", "buf"], ["k"]), n("Shape", ["buf"], ["s"]),
        n("Reshape", ["k", "s"], ["k1"]), n("Add", ["k1", "val"], ["acc"]), n("Not", ["reset"], ["nr"]),
        n("Or", ["reset", "nr"], ["flag"])], [h.make_opsetid("", OPSET)])


def adamw(count, beta1, beta2, eps, wd):
    N = []
    def o(op, i, out, **k): N.append(h.make_node(op, i, [out], **k)); return out
    for k, x in dict(b1=beta1, b2=beta2, o1=1 - beta1, o2=1 - beta2, eps=eps, one=1, wd=wd).items():
        o("Constant", [], k, value_float=float(x))
    o("Squeeze", ["lr"], "lr0"); o("Squeeze", ["step"], "st0")       # rank 0, or a rank-0 parameter would become [1]
    o("Cast", ["st0"], "t", to=T.FLOAT)
    o("Sub", ["one", o("Pow", ["b1", "t"], "p1")], "c1")
    o("Sqrt", [o("Sub", ["one", o("Pow", ["b2", "t"], "p2")], "c2q")], "c2")
    o("Div", ["lr0", "c1"], "a"); o("Mul", ["lr0", "wd"], "lw")
    W, M, V = [], [], []
    for j in range(count):
        ix = o("Constant", [], f"i{j}", value_int=j)
        w, g, m, v = [o("SequenceAt", [s, ix], f"{s}{j}") for s in "wgmv"]
        M.append(o("Add", [o("Mul", ["b1", m], f"bm{j}"), o("Mul", ["o1", g], f"og{j}")], f"mo{j}"))
        V.append(o("Add", [o("Mul", ["b2", v], f"bv{j}"), o("Mul", ["o2", o("Mul", [g, g], f"gg{j}")], f"og2{j}")], f"vo{j}"))
        den = o("Add", [o("Div", [o("Sqrt", [V[-1]], f"sv{j}"), "c2"], f"sc{j}"), "eps"], f"den{j}")
        dec = o("Sub", [w, o("Mul", [w, "lw"], f"wl{j}")], f"wd{j}")
        W.append(o("Sub", [dec, o("Mul", ["a", o("Div", [M[-1], den], f"u{j}")], f"au{j}")], f"wo{j}"))
    o("SequenceConstruct", W, "W"); o("SequenceConstruct", M, "M"); o("SequenceConstruct", V, "V")
    o("Equal", ["step", "step"], "flag")
    return h.make_function("com.microsoft", "AdamWOptimizer", ["lr", "step", "w", "g", "m", "v"], ["flag", "W", "M", "V"], N,
                           [h.make_opsetid("", OPSET)], ["alpha", "beta", "epsilon", "weight_decay", "correct_bias", "adam_mode"])


def opt_model(portable, beta1=.9, beta2=.999, eps=1e-8, wd=0.01):
    outs = ["updated_flag"] + (["params.out", "first_order_moments.out", "second_order_moments.out"] if portable else [])
    ins = ["learning_rate", "step", "params", "gradients", "first_order_moments", "second_order_moments"]
    node = h.make_node("AdamWOptimizer", ins, outs, name="AdamWOptimizer", domain="com.microsoft", adam_mode=0, alpha=beta1,
                       beta=beta2, epsilon=eps, weight_decay=wd, correct_bias=1)
    g = h.make_graph([node], "optimizer", [vi(ins[0], T.FLOAT, [1]), vi(ins[1], T.INT64, [1])] + [seq(x) for x in ins[2:]],
                     [vi(outs[0], T.BOOL, [1])] + [seq(x) for x in outs[1:]])
    return h.make_model(g, opset_imports=[h.make_opsetid("com.microsoft", 1), h.make_opsetid("", OPSET)], ir_version=8,
                        functions=[adamw(len(TRAIN), beta1, beta2, eps, wd)] if portable else [])


def user_inputs(): return [vi("input", T.FLOAT, ["batch", 2, 6, 6]), vi("labels", T.INT64, ["batch"])]
def param_inputs(): return [vi(k, T.FLOAT, v.shape) for k, v in PARAMS.items()]
def loss_outputs(): return [vi("loss", T.FLOAT, []), vi("logits", T.FLOAT, ["batch", 3])]


def portable():
    b = G(); forward(b)
    ev = h.make_model(h.make_graph(b.nodes, "eval", user_inputs() + param_inputs(), loss_outputs(), b.inits()),
                      opset_imports=[h.make_opsetid("", OPSET)], ir_version=8)
    backward(b); flags, accs = [], []
    for k in TRAIN:
        b("InPlaceAccumulatorV2", [f"{k}_grad.accumulation.buffer", f"{k}_grad", "lazy_reset_grad"],
          [f"{k}_grad.accumulation.out", f"accumulated.{k}_grad"], domain="com.microsoft")
        flags.append(vi(f"{k}_grad.accumulation.out", T.BOOL, [1])); accs.append(vi(f"accumulated.{k}_grad", T.FLOAT, PARAMS[k].shape))
    ins = user_inputs() + param_inputs() + [vi(f"{k}_grad.accumulation.buffer", T.FLOAT, PARAMS[k].shape) for k in TRAIN] + [vi("lazy_reset_grad", T.BOOL, [1])]
    tr = h.make_model(h.make_graph(b.nodes, "training", ins, loss_outputs() + flags + accs, b.inits()),
                      opset_imports=[h.make_opsetid("", OPSET), h.make_opsetid("com.microsoft", 1)], ir_version=8, functions=[accumulator()])
    return tr, ev


def main():
    for d in ("ms", "portable"): shutil.rmtree(d, ignore_errors=True); os.makedirs(d)
    r = np.random.default_rng(1)
    np.savez("feeds.npz", input=r.normal(size=(3, 4, 2, 6, 6)).astype(np.float32), labels=r.integers(0, 3, (3, 4)).astype(np.int64))
    b = G(); forward(b, loss=False)
    base = h.make_model(h.make_graph(b.nodes, "forward", user_inputs()[:1], loss_outputs()[1:], [nh.from_array(v, k) for k, v in PARAMS.items()] + b.inits()),
                        opset_imports=[h.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(base, full_check=True)
    with tempfile.TemporaryDirectory() as tmp:
        artifacts.generate_artifacts(base, requires_grad=TRAIN, frozen_params=FROZEN, loss=artifacts.LossType.CrossEntropyLoss,
                                     optimizer=artifacts.OptimType.AdamW, artifact_directory=tmp, additional_output_names=["logits"], nominal_checkpoint=True)
        for name in ("checkpoint", "nominal_checkpoint"): shutil.copy(os.path.join(tmp, name), os.path.join("ms", name))
        onnx.save(opt_model(False), os.path.join(tmp, "optimizer_model.onnx"))
        def run(folder, out, *extra):
            done = subprocess.run([sys.executable, os.path.join(TOOLS, "train.py"), folder, "feeds.npz", out, *extra], check=True, stdout=subprocess.PIPE)
            if done.stdout: print(done.stdout.decode()); assert max(json.loads(done.stdout).values()) < 1e-6
        tr, ev = portable()
        onnx.save(tr, "portable/training_model.onnx"); onnx.save(ev, "portable/eval_model.onnx")
        open("portable/checkpoint", "wb").write(odtc.write({k: PARAMS[k] for k in TRAIN}, {k: PARAMS[k] for k in FROZEN}))
        run(tmp, "expected.npz", "--save", "portable/checkpoint_after_3_steps")
        run(tmp, "expected_accumulate2.npz", "--accumulate", "2")
        shutil.copytree("portable", os.path.join(tmp, "portable"))
        onnx.save(opt_model(True), os.path.join(tmp, "portable", "optimizer_model.onnx"))
        run(os.path.join(tmp, "portable"), os.path.join(tmp, "out.npz"), "--expect", "expected.npz")
        run(os.path.join(tmp, "portable"), os.path.join(tmp, "out.npz"), "--accumulate", "2", "--expect", "expected_accumulate2.npz")
    names = ["ms/checkpoint", "portable/checkpoint", "portable/checkpoint_after_3_steps"]
    json.dump({n: odtc.dump(open(n, "rb").read()) for n in names}, open("checkpoints.json", "w"), indent=1)


if __name__ == "__main__":
    main()
