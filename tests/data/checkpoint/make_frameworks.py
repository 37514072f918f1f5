"""Makes `frameworks/`: python make_frameworks.py (torch, pytorch_lightning, omegaconf, numpy, safetensors; torchao where it
is there). What training frameworks leave next to the weights, and the kinds of files that are no state dict. Written with
torch 2.15, pytorch_lightning 2.6, omegaconf 2.4, numpy 2.4, Python 3.11."""
import argparse
import collections
import datetime
import decimal
import pathlib
import types
import uuid
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

warnings.filterwarnings("ignore")
OUT = Path(__file__).resolve().parent / "frameworks"
g = torch.Generator().manual_seed(16)
rand = lambda *s: torch.randn(*s, generator=g)
WEIGHTS = OrderedDict([("head.weight", rand(3, 5)), ("head.bias", rand(3)), ("stem.conv.weight", rand(2, 3, 1, 1))])
prefixed = lambda sd, p: OrderedDict((p + k, v) for k, v in sd.items())


def hyper():
    from omegaconf import OmegaConf
    from pytorch_lightning.utilities.parsing import AttributeDict
    rng = np.random.default_rng(3)
    return AttributeDict(
        cfg=OmegaConf.create({"model": {"width": 7, "dropout": 0.25, "name": "x", "off": False}, "steps": [1, 2, {"a": None}], "again": "${model.width}"}),
        args=argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("runs/a"), w=pathlib.PureWindowsPath("a/b")),
        auc=np.float64(0.91), classes=np.int64(3), done=np.bool_(True), prior=np.array([0.2, 0.3, 0.5]), names=np.array(["CN", "AD"]),
        turned=np.asfortranarray(np.ones((2, 3), np.float32)), dtype=np.dtype("f4"), random=rng.bit_generator.state, kind=np.float32,
        saved=datetime.datetime(2026, 2, 3, tzinfo=datetime.timezone.utc), day=datetime.date(2026, 2, 3), took=datetime.timedelta(hours=2),
        losses=collections.deque([1.0, 0.5], maxlen=4), price=decimal.Decimal("1.25"), run=uuid.UUID(int=7), ns=types.SimpleNamespace(a=1),
        span=range(3), part=slice(1, 2), z=1j, loss_class=nn.CrossEntropyLoss, opt_class=torch.optim.AdamW, layout=torch.strided,
        counts=collections.Counter("aab"), lists=collections.defaultdict(list, {"a": [1]}), names_set=frozenset(["a"]), device=torch.device("cpu"))


def lightning():
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
    p = nn.Parameter(torch.zeros(2))
    opt = torch.optim.AdamW([p])
    p.sum().backward()
    opt.step()
    return {"epoch": 2, "pytorch-lightning_version": pl.__version__, "state_dict": prefixed(WEIGHTS, "net."), "hyper_parameters": hyper(),
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best": np.float32(0.5)}, EarlyStopping: {"wait": 1}},
            "optimizer_states": [opt.state_dict()], "lr_schedulers": [{"last_lr": [np.float64(1e-3)]}], "loops": {"fit_loop": {"state_dict": {}}}}


def folded():
    from torch.nn.utils import parametrizations as new, prune, spectral_norm, weight_norm
    torch.manual_seed(5)
    modules = OrderedDict(
        old=weight_norm(nn.Linear(5, 4)), old_one=weight_norm(nn.Linear(5, 4), dim=None), old_conv=weight_norm(nn.Conv2d(3, 4, 2), dim=1),
        new=new.weight_norm(nn.Linear(5, 4)), new_conv=new.weight_norm(nn.Conv3d(2, 3, 2), dim=2), new_one=new.weight_norm(nn.Linear(4, 4), dim=None),
        spectral=spectral_norm(nn.Linear(6, 3)), spectral_conv=spectral_norm(nn.Conv2d(4, 4, 3)), spectral_turned=spectral_norm(nn.Linear(4, 4), dim=1),
        spectral_new=new.spectral_norm(nn.Linear(6, 3)), spectral_up=new.spectral_norm(nn.ConvTranspose2d(4, 4, 2)), spectral_3d=new.spectral_norm(nn.Conv3d(2, 5, 2)),
        pruned=prune.l1_unstructured(nn.Linear(5, 4), "weight", 0.4), plain=nn.Linear(2, 2))
    model = nn.ModuleDict(modules)
    inputs = dict(spectral=(2, 6), spectral_conv=(1, 4, 5, 5), spectral_turned=(2, 4), spectral_new=(2, 6), spectral_up=(1, 4, 3, 3), spectral_3d=(1, 2, 3, 3, 3))
    for _ in range(3):                         # spectral norms iterate in training mode
        for name, shape in inputs.items():
            modules[name](torch.randn(shape))
    with torch.no_grad():                      # and the optimizer steps once more
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 1e-4)
    model.eval()
    for name, shape in inputs.items():         # hooks of the old functions compute the weight when a module runs
        modules[name](torch.randn(shape))
    for name, shape in dict(old=(2, 5), old_one=(2, 5), old_conv=(1, 3, 4, 4), pruned=(2, 5)).items():
        modules[name](torch.randn(shape))
    expected = {f"{n}.{k}": getattr(m, k).detach().clone().contiguous() for n, m in modules.items() for k in ("weight", "bias")}
    return model.state_dict(), expected


def refused():
    torch.save(prefixed(OrderedDict((k, v.to("meta")) for k, v in WEIGHTS.items()), ""), OUT / "meta.pt")
    sd = OrderedDict(WEIGHTS)
    torch.save(sd | {"head.weight": sd["head.weight"].to_sparse_csr(), "stem.conv.weight": sd["stem.conv.weight"].to_sparse()}, OUT / "sparse.pt")
    torch.save(sd | {"head.weight": torch.quantize_per_channel(sd["head.weight"], torch.ones(3), torch.zeros(3), 0, torch.qint8)}, OUT / "quantized.pt")
    q = nn.Sequential(nn.Linear(3, 2))
    torch.ao.quantization.quantize_dynamic(q, inplace=True)
    torch.save(q.state_dict(), OUT / "packed.pt")
    torch.save({k: v.numpy() for k, v in sd.items()}, OUT / "arrays.pt")
    m = nn.Sequential(nn.Linear(3, 3))
    nn.utils.parametrizations.orthogonal(m[0])
    torch.save(m.state_dict(), OUT / "orthogonal.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(OUT / "script.pt"))
    with zipfile.ZipFile(OUT / "script.pt") as z:      # its debug records hold this machine's folders
        records = [(i, z.read(i)) for i in z.infolist() if not i.filename.endswith("debug_pkl")]
    with zipfile.ZipFile(OUT / "script.pt", "w") as z:
        for i, content in records:
            z.writestr(zipfile.ZipInfo(i.filename), content, compress_type=i.compress_type)
    from torch.package import PackageExporter
    with PackageExporter(str(OUT / "package.pt")) as e:
        e.save_pickle("model", "weights.pkl", dict(sd))
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    torch.save({k: distribute_tensor(v, init_device_mesh("cpu", (1,)), [Shard(0)]) for k, v in sd.items()}, OUT / "sharded.pt")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    m = nn.Sequential(nn.Linear(32, 2))
    quantize_(m, Int8WeightOnlyConfig())
    torch.save(m.state_dict(), OUT / "torchao.pt")
    p = nn.Parameter(torch.zeros(2))
    torch.save({"state_dict": sd, "optimizer": torch.optim.SGD([p], lr=0.1)}, OUT / "optimizer.pt")
    torch.save(sd | {"head.bias": torch.complex(sd["head.bias"], -sd["head.bias"]).conj().imag}, OUT / "negated.pt")


def main():
    OUT.mkdir(exist_ok=True)
    save_file(WEIGHTS, OUT / "weights.safetensors")
    for protocol in (2, 4, 5):
        torch.save(lightning(), OUT / f"lightning_p{protocol}.ckpt", pickle_protocol=protocol)
    state, expected = folded()
    torch.save(state, OUT / "folded.pt")
    save_file(expected, OUT / "folded.safetensors")
    torch.save({"epoch": 3, "network": WEIGHTS, "network_ema": prefixed({k: v * 2 for k, v in WEIGHTS.items()}, "module.")}, OUT / "averaged.pt")
    torch.save({"run": {"weights_ema": WEIGHTS, "weights_swa": WEIGHTS | {"head.bias": torch.ones(3)}}, "metrics": {"auc": torch.ones(3)}}, OUT / "two_averages.pt")
    torch.save({"head": {"weight": WEIGHTS["head.weight"], "bias": WEIGHTS["head.bias"]}, "stem": {"conv.weight": WEIGHTS["stem.conv.weight"]}, "step": 4}, OUT / "parts.pt")
    refused()


main()
