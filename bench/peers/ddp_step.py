"""Peer arms of the MLP benchmarks: DistributedDataParallel over gloo, one thread a process. Started by mpirun, which
only tells each process its rank."""
import argparse

import torch
import torch.distributed as dist
import torch.distributed.algorithms.ddp_comm_hooks.default_hooks as default_hooks
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import powersgd
from arm import Server, join_gloo, read_safetensors

parser = argparse.ArgumentParser()
parser.add_argument("--serve")
parser.add_argument("--file")
parser.add_argument("--port")
parser.add_argument("--arm", choices=["copy", "view", "powersgd", "bf16", "compute", "comm"])
parser.add_argument("--bucket-mib", type=int)
args = parser.parse_args()
rank, size = join_gloo(args.port)

tensors, meta = read_safetensors(args.file)
layers = []
while f"layers.{len(layers)}.weight" in tensors:
    out, inputs = tensors[f"layers.{len(layers)}.weight"].shape
    layers.append(nn.Linear(inputs, out))
modules = []
for i, layer in enumerate(layers):
    layer.weight.data.copy_(tensors[f"layers.{i}.weight"])
    layer.bias.data.copy_(tensors[f"layers.{i}.bias"])
    modules += [layer] + ([nn.ReLU(inplace=True)] if i + 1 < len(layers) else [])
model = nn.Sequential(*modules)
if args.arm == "powersgd":
    # Over gloo this hook's callbacks start collectives in an order of their own on each rank: with two buckets on their
    # way, ranks soon mix them up and abort. One bucket.
    args.bucket_mib = 1000
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1000 << 20
if args.arm not in ("compute", "comm"):
    # As ours: a first bucket of 1 MiB, rebuilt in the observed order.
    model = DistributedDataParallel(model, bucket_cap_mb=args.bucket_mib, gradient_as_bucket_view=args.arm != "copy")
if args.arm == "powersgd":  # rank as ours, from the third step on: it may not start before buckets are rebuilt
    model.register_comm_hook(powersgd.state(matrix_approximation_rank=32, start_powerSGD_iter=2),
                             powersgd.hook.powerSGD_hook)
if args.arm == "bf16":
    model.register_comm_hook(None, default_hooks.bf16_compress_hook)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
batches = []
for k in range(int(meta["batches"])):
    x, label = tensors[f"batch.{k}.x"], tensors[f"batch.{k}.label"]
    rows = slice(rank * len(x) // size, (rank + 1) * len(x) // size)
    batches.append((x[rows].clone(), label[rows].clone()))
taken = 0


def step():
    global taken
    x, label = batches[taken % len(batches)]
    taken += 1
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x), label)
    loss.backward()
    optimizer.step()
    total = loss.detach() / size
    dist.all_reduce(total)
    return total.item()


pieces = torch.zeros(sum(p.numel() for p in model.parameters())).split((args.bucket_mib << 20) // 4)


def comm():
    for work in [dist.all_reduce(p, async_op=True) for p in pieces]:
        work.wait()
    return 0.0


Server(args.serve, rank).run(comm if args.arm == "comm" else step)
dist.destroy_process_group()
