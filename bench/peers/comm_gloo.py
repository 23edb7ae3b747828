"""Peer arm of bench comm: torch.distributed over gloo. Started by mpirun, which only tells each process its rank."""
import argparse
import time

import torch
import torch.distributed as dist

from arm import Server, join_gloo

parser = argparse.ArgumentParser()
parser.add_argument("--serve")
parser.add_argument("--port")
args = parser.parse_args()
rank, size = join_gloo(args.port)


def values(r, count):
    """What rank r passes in: random, and so small that many sums in place stay finite."""
    x = torch.rand(count, generator=torch.Generator().manual_seed(r))
    return (x - 0.5) * 2.0 ** -100


def expected(op, count):
    """(result, tolerance by element) of the first call on this rank; count: elements of the whole buffer."""
    part = count // size
    if op == "broadcast":
        return values(0, count), 0
    if op == "all_gather":
        return torch.cat([values(r, part) for r in range(size)]), 0
    everyone = [values(r, count) for r in range(size)]
    if op == "all_to_all":
        return torch.cat([x[rank * part:(rank + 1) * part] for x in everyone]), 0
    if op == "reduce_scatter":
        everyone = [x[rank * part:(rank + 1) * part] for x in everyone]
    return sum(x.double() for x in everyone), 1e-6 * sum(x.double().abs() for x in everyone)


def measure(calls, op, size_bytes):
    count = size_bytes // 4
    part = count // size
    if op not in ("all_reduce", "broadcast"):
        count = part * size
    if op == "barrier":
        call = dist.barrier
    elif op == "all_reduce":
        out = values(rank, count)
        call = lambda: dist.all_reduce(out)
    elif op == "broadcast":
        out = values(0, count) if rank == 0 else torch.full((count,), -1.0)
        call = lambda: dist.broadcast(out, 0)
    else:
        source = values(rank, part if op == "all_gather" else count)
        out = torch.full((part if op == "reduce_scatter" else count,), -1.0)
        call = {"all_gather": lambda: dist.all_gather_into_tensor(out, source),
                "reduce_scatter": lambda: dist.reduce_scatter_tensor(out, source),
                "all_to_all": lambda: dist.all_to_all_single(out, source)}[op]
    dist.barrier()
    us = []
    for _ in range(calls + 2):  # the first two are not counted
        begin = time.perf_counter()
        call()
        us.append(1e6 * (time.perf_counter() - begin))
    wrong = torch.zeros(1, dtype=torch.int64)
    if op != "barrier":
        want, allowed = expected(op, count)
        if op == "all_reduce":
            want, allowed = want * float(size) ** (calls + 1), allowed * float(size) ** (calls + 1) * (calls + 2)
        wrong[0] = int((~((out.double() - want.double()).abs() <= allowed)).sum())
    times = torch.tensor(us[2:], dtype=torch.float64)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    dist.all_reduce(wrong)
    return {"us": times.tolist(), "wrong": int(wrong[0])}


server = Server(args.serve, rank)
for calls, op, size_bytes, _ in server.commands():
    try:
        server.answer(measure(int(calls), op, int(size_bytes)))
    except (RuntimeError, ValueError, NotImplementedError) as e:
        server.answer({"skipped": str(e).splitlines()[0]})
dist.destroy_process_group()
