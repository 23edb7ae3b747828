"""Peer arms of bench dlrm_step: DLRM by its equations (Naumov et al., arXiv 1906.00091) with the weights and batches of
our arm. plain: EmbeddingBag with sparse gradients and SGD, as facebookresearch/dlrm trains. graph: one CUDA graph of the
whole step; all tables in one weight, index_select, the rows' gradient by index_add_, MLPs by autograd. ddp: each table on
one rank, its rows by all_to_all_single, the MLPs in DistributedDataParallel, over NCCL or gloo; started by mpirun."""
import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_to_all_single
from torch.nn.parallel import DistributedDataParallel

from arm import Server, read_safetensors


def mlp(tensors, prefix, relu_at_end):
    """A Sequential of Linear and ReLU with the weights PREFIX.0, PREFIX.2, ..."""
    layers = []
    while f"{prefix}.{len(layers)}.weight" in tensors:
        weight, bias = (tensors[f"{prefix}.{len(layers)}.{kind}"] for kind in ("weight", "bias"))
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*(layers if relu_at_end else layers[:-1]))


class Model:
    def __init__(self, tensors, device):
        self.bottom = mlp(tensors, "bot_l", True).to(device)
        self.top = mlp(tensors, "top_l", False).to(device)
        self.mlps = [*self.bottom.parameters(), *self.top.parameters()]
        count = 0
        while f"emb_l.{count}.weight" in tensors:
            count += 1
        self.tables = [tensors[f"emb_l.{k}.weight"].to(device) for k in range(count)]
        at = torch.tril_indices(count + 1, count + 1, -1, device=device)
        self.rows, self.columns = at[0], at[1]

    def loss(self, dense, vectors, label):
        """vectors: a list of [b, d], or [b, F, d]."""
        x = self.bottom(dense)
        if isinstance(vectors, list):
            t = torch.cat([x] + vectors, 1).view(len(x), -1, x.shape[1])
        else:
            t = torch.cat([x.unsqueeze(1), vectors], 1)
        products = torch.bmm(t, t.transpose(1, 2))[:, self.rows, self.columns]
        return F.binary_cross_entropy_with_logits(self.top(torch.cat([x, products], 1)).squeeze(1), label)


class Plain:
    def __init__(self, model, batches, lr):
        self.model, self.batches = model, batches
        self.bags = [torch.nn.EmbeddingBag.from_pretrained(t, freeze=False, mode="sum", sparse=True) for t in model.tables]
        self.optimizer = torch.optim.SGD([*model.mlps, *(b.weight for b in self.bags)], lr=lr)
        self.offsets = torch.arange(len(batches[0][2]), device=batches[0][1].device)
        self.ids = [list(ids.t().contiguous()) for _, ids, _ in batches]

    def __call__(self, k):
        dense, _, label = self.batches[k]
        self.optimizer.zero_grad()
        vectors = [bag(ids, self.offsets) for bag, ids in zip(self.bags, self.ids[k])]
        loss = self.model.loss(dense, vectors, label)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Graph:
    def __init__(self, model, batches, lr):
        self.model, self.lr = model, lr
        self.weight = torch.cat(model.tables)
        first = torch.tensor([0] + [len(t) for t in model.tables[:-1]]).cumsum(0).to(self.weight.device)
        model.tables = None
        self.batches = [(dense, (ids + first).reshape(-1), label) for dense, ids, label in batches]
        self.static = tuple(t.clone() for t in self.batches[0])
        kept = [p.detach().clone() for p in model.mlps], self.weight.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        for p in model.mlps:
            p.grad = None
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.step()
        with torch.no_grad():  # the trial steps trained
            for p, value in zip(model.mlps, kept[0]):
                p.copy_(value)
            self.weight.copy_(kept[1])

    def step(self):
        dense, ids, label = self.static
        rows = self.weight.index_select(0, ids).requires_grad_()
        loss = self.model.loss(dense, rows.view(len(dense), -1, rows.shape[1]), label)
        grads = torch.autograd.grad(loss, [rows, *self.model.mlps])
        with torch.no_grad():
            self.weight.index_add_(0, ids, grads[0], alpha=-self.lr)
            torch._foreach_add_(self.model.mlps, grads[1:], alpha=-self.lr)
        return loss.detach()

    def __call__(self, k):
        for to, value in zip(self.static, self.batches[k]):
            to.copy_(value)
        self.graph.replay()
        return self.loss


class Ddp:
    """As plain, on the ranks of a job; one process alone is a job of one. Every rank has the ids of the whole batch for its
    own tables, so only rows and their gradients travel."""

    def __init__(self, model, batches, lr):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.model, self.device = model, batches[0][1].device
        self.own = [bag for k, bag in enumerate(Plain(model, batches, lr).bags) if k % self.size == self.rank]
        tables = [list(range(r, len(model.tables), self.size)) for r in range(self.size)]
        mine, model.tables = tables[self.rank], None
        order = [k for of_rank in tables for k in of_rank]
        self.place = torch.tensor([order.index(k) for k in range(len(order))], device=self.device)
        if self.size > 1:
            model.bottom, model.top = DistributedDataParallel(model.bottom), DistributedDataParallel(model.top)
        # The mean over ranks of the loss: DDP takes it of the MLPs' gradients, the tables' rate does the same.
        self.optimizer = torch.optim.SGD([{"params": model.mlps},
                                          {"params": [b.weight for b in self.own], "lr": lr / self.size}], lr=lr)
        self.rows = len(batches[0][2]) // self.size
        part = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
        self.batches = [(dense[part], [ids[:, k].contiguous() for k in mine], label[part]) for dense, ids, label in batches]
        self.offsets = torch.arange(self.rows * self.size, device=self.device)
        self.dim = self.own[0].weight.shape[1]
        self.send = [self.rows * len(mine) * self.dim] * self.size
        self.recv = [self.rows * len(t) * self.dim for t in tables]

    def __call__(self, k):
        dense, ids, label = self.batches[k]
        self.optimizer.zero_grad()
        looked_up = torch.stack([bag(i, self.offsets) for bag, i in zip(self.own, ids)])  # [tables, B, d]
        sent = looked_up.view(len(ids), self.size, self.rows, self.dim).transpose(0, 1).reshape(-1)
        received = sent
        if self.size > 1:
            received = all_to_all_single(sent.new_empty(sum(self.recv)), sent, self.recv, self.send)
        vectors = received.view(-1, self.rows, self.dim).index_select(0, self.place).transpose(0, 1)
        loss = self.model.loss(dense, vectors, label)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def mean(self, loss):
        if self.size > 1:
            dist.all_reduce(loss)
        return loss / self.size


def join(device, port):
    """(rank, device) of this process: mpirun tells each its rank."""
    rank, size = (int(os.environ.get(f"OMPI_COMM_WORLD_{word}", default)) for word, default in (("RANK", 0), ("SIZE", 1)))
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = port
    dist.init_process_group("nccl" if device != "cpu" else "gloo", rank=rank, world_size=size)
    return rank, device


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--file")
    p.add_argument("--arm", choices=["plain", "graph", "ddp"])
    p.add_argument("--device", choices=["cpu", "cuda"])
    p.add_argument("--port")
    a = p.parse_args()
    if a.device == "cpu" or a.arm == "ddp":
        torch.set_num_threads(1)
    rank = 0
    if a.arm == "ddp":
        rank, a.device = join(a.device, a.port)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tensors, meta = read_safetensors(a.file)
    count = int(meta["batches"])
    batches = [(tensors[f"batch.{k}.dense"].to(a.device), tensors[f"batch.{k}.ids"].long().to(a.device),
                tensors[f"batch.{k}.label"].to(a.device)) for k in range(count)]
    step = {"plain": Plain, "graph": Graph, "ddp": Ddp}[a.arm](Model(tensors, a.device), batches, float(meta["lr"]))
    del tensors
    server, taken = Server(a.serve, rank), 0
    for words in server.commands():
        begin, cpu = time.perf_counter(), time.thread_time()
        for _ in range(int(words[0])):
            loss = step(taken % count)
            taken += 1
        last = (step.mean(loss) if a.arm == "ddp" else loss).item()  # the host runs ahead within a block
        server.answer({"ms": 1e3 * (time.perf_counter() - begin), "cpu_ms": 1e3 * (time.thread_time() - cpu),
                       "losses": [last]})


main()
