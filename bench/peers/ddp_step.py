"""Peer arm of bench ddp_step: the same MLP under DistributedDataParallel over gloo, 2 processes of one thread."""
import argparse
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from arm import Server, read_safetensors

RANKS = 2


def main(rank, a, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    tensors, meta = read_safetensors(a.file)
    layers = []
    while f"layers.{len(layers)}.weight" in tensors:
        out, inputs = tensors[f"layers.{len(layers)}.weight"].shape
        layers.append(nn.Linear(inputs, out))
    modules = []
    for i, layer in enumerate(layers):
        layer.weight.data.copy_(tensors[f"layers.{i}.weight"])
        layer.bias.data.copy_(tensors[f"layers.{i}.bias"])
        modules += [layer] + ([nn.ReLU(inplace=True)] if i + 1 < len(layers) else [])
    # DDP's own defaults are the same: 25 MiB buckets, a first one of 1 MiB, rebuilt in the observed order.
    model = DistributedDataParallel(nn.Sequential(*modules), bucket_cap_mb=25, gradient_as_bucket_view=a.arm == "view")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    batches = []
    for k in range(int(meta["batches"])):
        x, label = tensors[f"batch.{k}.x"], tensors[f"batch.{k}.label"]
        rows = slice(rank * len(x) // RANKS, (rank + 1) * len(x) // RANKS)
        batches.append((x[rows].clone(), label[rows].clone()))
    taken = 0

    def step():
        nonlocal taken
        x, label = batches[taken % len(batches)]
        taken += 1
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), label)
        loss.backward()
        optimizer.step()
        total = loss.detach() / RANKS
        dist.all_reduce(total)
        return total.item()

    Server(a.serve, rank).run(step)
    dist.destroy_process_group()


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--file")
    p.add_argument("--arm", choices=["copy", "view"])
    args = p.parse_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(main, (args, free), nprocs=RANKS)
