"""Makes `distributed/`: python make_distributed.py [SEED OUT] (needs torch with gloo, deepspeed, safetensors). Folders that PyTorch's
DCP and DeepSpeed's ZeRO engine write over several processes, and next to each what their own converters
(torch.distributed.checkpoint.format_utils.dcp_to_torch_save, deepspeed.utils.zero_to_fp32) make of it. With a seed: other
sizes and values, for comparisons with what is not recorded."""
import os
import random
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent / "distributed"


def sizes(seed):
    r = random.Random(seed)
    return [r.randint(1, 9) for _ in range(8)] if seed else [5, 3, 7, 6, 4, 2, 3, 5]


def sharded(ranks, mesh_shape, seed):
    """a state dict of DTensors over a mesh: every placement, uneven and empty shards, a plain tensor, a column-major one"""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
    torch.manual_seed(seed)
    mesh = init_device_mesh("cpu", mesh_shape)
    n, d = sizes(seed), len(mesh_shape)
    rows = lambda *dims: [Shard(x) if x is not None else Replicate() for x in dims][:d]
    whole = {"a.weight": (torch.randn(n[0], n[1]), rows(0, 1)), "a.bias": (torch.randn(n[0]), rows(0, None)),
             "b.weight": (torch.randn(n[2], n[3]).bfloat16(), rows(1, 0)), "c": (torch.randn(n[4], n[5], n[6], 2), rows(2, 0)),
             "few": (torch.randn(1, n[7]).half(), rows(0, 1)), "same": (torch.randn(n[1]), rows(None, None)),
             "count": (torch.arange(n[3]), rows(0, 0) if d == 1 else rows(None, 0)), "both": (torch.randn(n[2] + 4, 3), rows(0, 0)),
             "empty": (torch.zeros(0, 3), rows(0, None))}
    sd = {k: distribute_tensor(t, mesh, p) for k, (t, p) in whole.items()}
    return sd | {"plain": torch.randn(3, 2), "turned": torch.randn(2, 5).t(), "steps": 7, "scale": torch.tensor(1.5)}


def init(rank, ranks, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)


def save_dcp(rank, ranks, mesh, seed, port, out):
    init(rank, ranks, port)
    dist.init_process_group("gloo")
    sd = sharded(ranks, mesh, seed)
    # The optimizer's part is not read.
    dcp.save({"model": sd, "optim": {"state": {"a.weight": {"exp_avg": sd["a.weight"]}}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}, checkpoint_id=out)
    dist.destroy_process_group()


def save_fsdp(rank, ranks, mesh, seed, port, out):
    """FSDP2 over an uneven model, its state dict flat, as torchtitan saves it"""
    init(rank, ranks, port)
    dist.init_process_group("gloo")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    torch.manual_seed(seed)
    n = sizes(seed)
    model = nn.Sequential(nn.Linear(n[0], n[1]), nn.LayerNorm(n[1]), nn.Linear(n[1], n[2], bias=False))
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", mesh))
    fully_shard(model, mesh=init_device_mesh("cpu", mesh))
    dcp.save(model.state_dict(), checkpoint_id=out)
    dist.destroy_process_group()


class Model(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(n[0], n[1]), nn.Linear(n[1], n[2], bias=False), nn.LayerNorm(n[2])
        self.frozen, self.tied = nn.Linear(n[2], n[3]), nn.Linear(n[1], n[2], bias=False)
        self.tied.weight = self.b.weight
        self.register_buffer("scale", torch.arange(float(n[1])) + 0.5)
        self.register_buffer("seen", torch.tensor(4))
        for p in self.frozen.parameters():
            p.requires_grad = False

    def forward(self, x):
        h = self.a(x)
        h = h * self.scale.to(h.dtype)
        return self.frozen(self.norm(self.b(h)) + self.tied(h)).sum()


def save_zero(rank, ranks, stage, seed, port, out):
    init(rank, ranks, port)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    # An operator that would have to be compiled, of which gloo has its own.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    deepspeed.init_distributed("gloo")
    torch.manual_seed(seed)
    n = sizes(seed)
    model = Model(n)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() > 1]}, {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0}]
    zero = {"stage": stage} | ({"sub_group_size": 20} if stage == 3 else {})
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config={
        "train_micro_batch_size_per_gpu": 2, "zero_optimization": zero, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "bf16": {"enabled": True}})
    for _ in range(2):
        loss = engine(torch.randn(2, n[0]).bfloat16())
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(out)


def record(sd, path):
    save_file({k: v.detach().clone().contiguous() for k, v in sd.items() if torch.is_tensor(v)}, path)


def make(out, seed, which):
    os.chdir(out)  # the path becomes part of what is saved
    port = 29500 + random.SystemRandom().randint(0, 900)
    for name, save, ranks, mesh in [("mesh1", save_dcp, 3, (3,)), ("mesh2", save_dcp, 4, (2, 2)), ("fsdp", save_fsdp, 2, (2,))]:
        if which in ("all", "dcp"):
            mp.spawn(save, (ranks, mesh, seed, port, name), nprocs=ranks)
            from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
            dcp_to_torch_save(str(out / name), str(out / "t.pt"))
            whole = torch.load(out / "t.pt", weights_only=False)
            record(whole.get("model", whole), out / f"{name}.safetensors")
            (out / "t.pt").unlink()
            port += 1
    for name, ranks, stage in [("zero3", 3, 3), ("zero2", 2, 2), ("zero1", 2, 1)]:
        if which in ("all", "zero"):
            mp.spawn(save_zero, (ranks, stage, seed, port, name), nprocs=ranks)
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
            record(get_fp32_state_dict_from_zero_checkpoint(str(out / name)), out / f"{name}.safetensors")
            for script in (out / name).glob("*.py"):
                script.unlink()
            port += 1


if __name__ == "__main__":
    seed, out = (int(sys.argv[1]), Path(sys.argv[2])) if len(sys.argv) > 2 else (0, HERE)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    make(out.resolve(), seed, sys.argv[3] if len(sys.argv) > 3 else "all")
