"""Peer arms of bench ddp_hooks: DistributedDataParallel with PyTorch's own communication hooks, over NCCL with a GPU a
process or over gloo with a thread each. Started by mpirun, which only tells each process its rank. The file says which network: that of recipes/mlp (f32), or
of recipes/transformer (bf16 autocast), operator by operator."""
import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.distributed.algorithms.ddp_comm_hooks.default_hooks as default_hooks
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import powersgd
from arm import Server, read_safetensors
from transformer import Transformer


class Mlp(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        self.layers = nn.ModuleList()
        while f"layers.{len(self.layers)}.weight" in tensors:
            out, inputs = tensors[f"layers.{len(self.layers)}.weight"].shape
            self.layers.append(nn.Linear(inputs, out))

    def forward(self, x, label):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i + 1 < len(self.layers):
                x = F.relu(x, inplace=True)
        return F.cross_entropy(x, label)


def make_model(tensors, meta):
    weights = {n: t for n, t in tensors.items() if not n.startswith("batch.")}
    model = Mlp(weights) if "layers.0.weight" in weights else Transformer(weights, int(meta["heads"]))
    model.load_state_dict(weights, strict=True)
    return model


def sent_by_formula(hook, model, size):
    """Bytes that a rank sends for gradients in a step, from the published rules of each hook, by rings."""
    name, *more = hook.split("-")
    width = 2 if "bf16" in hook else 4
    values = 0
    for p in model.parameters():
        rows, n = p.shape[0], p.numel()
        columns = n // rows
        # powerSGD_hook: a matrix is compressed where that halves it at least; vectors are not.
        rank = min(rows, columns, int(more[0])) if name == "powersgd" else 0
        compressed = rank and p.ndim > 1 and (rows + columns) * rank * 2 < n
        values += (rows + columns) * rank if compressed else n
    return 2 * (size - 1) / size * values * width


def register(model, hook, start):
    """none, bf16, powersgd-RANK, powersgd-RANK-bf16."""
    name, *more = hook.split("-")
    if name == "bf16":
        model.register_comm_hook(None, default_hooks.bf16_compress_hook)
    if name == "powersgd":
        state = powersgd.state(matrix_approximation_rank=int(more[0]), start_powerSGD_iter=start)
        wrap = default_hooks.bf16_compress_wrapper if more[1:] == ["bf16"] else lambda f: f
        model.register_comm_hook(state, wrap(powersgd.hook.powerSGD_hook))


def link_bytes():
    """Bytes that this host has put on the link of tests/net/lab, by the kernel's counter; 0 elsewhere."""
    if "TRIREME_LAB" in os.environ:
        for line in open("/proc/self/net/dev"):
            name, _, values = line.partition(":")
            if name.strip() == "eth0":
                return int(values.split()[8])
    return 0


class Arm:
    def __init__(self, a):
        self.rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
        self.size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
        torch.set_num_threads(1)
        self.device = torch.device("cuda", int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0)) %
                                   torch.cuda.device_count()) if a.device == "cuda" else torch.device("cpu")
        tensors, meta = read_safetensors(a.file)
        self.bf16 = meta["precision"] == "bf16"
        model = make_model(tensors, meta).to(self.device)
        decay = [p for p in model.parameters() if p.ndim > 1]
        bare = [p for p in model.parameters() if p.ndim < 2]
        self.formula = sent_by_formula(a.hook, model, self.size)
        self.lr, self.warmup = float(meta["lr"]), int(meta["warmup"])
        self.optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": float(meta["weight_decay"])},
                                            {"params": bare, "weight_decay": 0.0}],
                                           lr=self.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.model = model
        if self.size > 1:
            if self.device.type == "cpu" and a.hook.startswith("powersgd"):
                # Over gloo this hook mixes up the buckets of ranks (see ddp_step.py): one bucket.
                a.bucket_mib = 1000
                dist._DEFAULT_FIRST_BUCKET_BYTES = 1000 << 20
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ["MASTER_PORT"] = a.port
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", rank=self.rank,
                                    world_size=self.size)
            self.model = DistributedDataParallel(model, bucket_cap_mb=a.bucket_mib, gradient_as_bucket_view=True)
            register(self.model, a.hook, a.start)
        self.batches = []
        for k in range(int(meta["batches"])):
            columns = [tensors[f"batch.{k}.{c}"] for c in meta["columns"].split()]
            rows = slice(self.rank * len(columns[0]) // self.size, (self.rank + 1) * len(columns[0]) // self.size)
            self.batches.append([c[rows].to(self.device) for c in columns])
        self.taken = 0

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.taken + 1) / max(1, self.warmup))
        batch = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(*batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def global_losses(self, losses):
        total = torch.stack(losses) / self.size
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def block(self, n, untimed):
        """Memory that other arms had meanwhile is taken again by the untimed steps."""
        for _ in range(untimed):
            self.step()
        self.wait()
        if self.size > 1:
            dist.barrier()
        sent, begin, cpu = link_bytes(), time.perf_counter(), time.thread_time()
        losses = [self.step() for _ in range(n)]
        last = self.global_losses(losses[-1:])
        answer = {"ms": 1e3 * (time.perf_counter() - begin), "cpu_ms": 1e3 * (time.thread_time() - cpu),
                  "losses": last, "sent": self.mean((link_bytes() - sent) / n), "sent_by_formula": self.formula}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return answer

    def mean(self, value):
        if self.size == 1:
            return value
        total = torch.tensor(value / self.size, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--file")
    p.add_argument("--port")
    p.add_argument("--device")
    p.add_argument("--hook")
    p.add_argument("--start", type=int)
    p.add_argument("--bucket-mib", type=float)
    a = p.parse_args()
    arm = Arm(a)
    server = Server(a.serve, arm.rank)
    for words in server.commands():
        if words[1] == "losses":
            server.answer({"losses": arm.global_losses([arm.step() for _ in range(int(words[0]))])})
        else:
            server.answer(arm.block(int(words[0]), int(words[2]) if len(words) > 2 else 0))
    if arm.size > 1:
        dist.destroy_process_group()


main()
