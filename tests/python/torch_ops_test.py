#!/usr/bin/env python3
"""torch.ops.trireme: the ten lines of docs/codecs.md around all_to_all_single on two processes over gloo (or nccl, two
GPUs), the bound of every value, shapes without data, and refusals.
  torch_ops_test.py LIBRARY DOCS            exit status 77: this Python has no torch
"""
import re
import sys
import tempfile

try:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
except ImportError:
    print("skipped: this Python has no torch")
    sys.exit(77)

BOUND = 0.03


def documented(docs):
    """The function of the page's first Python block that defines one."""
    blocks = re.findall(r"```python\n(.*?)```", open(docs).read(), re.S)
    block = next(b for b in blocks if "def " in b)
    scope = {}
    exec(block.replace('torch.ops.load_library("build/release/lib/libtrireme_torch.so")', ""), scope)
    return scope["all_to_all"]


def rows_of(rank, n, dim):
    """A lookup: rows that repeat."""
    g = torch.Generator().manual_seed(100 + rank)
    table = torch.randn(50, dim, generator=g)
    return table[torch.randint(50, (n,), generator=g)]


def exchange(rank, library, docs, meet, device):
    torch.set_num_threads(1)
    torch.ops.load_library(library)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    all_to_all = documented(docs)
    if device == "cuda":
        torch.cuda.set_device(rank)
    count = [[300, 77], [0, 512]]  # of sender and receiver
    for dim in (1, 16, 64):
        mine = [rows_of(r, sum(count[r]), dim) for r in range(2)]
        got = all_to_all(mine[rank].to(device), count[rank], [count[r][rank] for r in range(2)], BOUND).cpu()
        sent = torch.cat([mine[r].split(count[r])[rank] for r in range(2)])
        assert got.shape == sent.shape, (got.shape, sent.shape)
        first = count[0][rank]
        for r, part in enumerate((slice(0, first), slice(first, None))):
            if not sent[part].numel():
                continue
            error = (got[part].double() - sent[part].double()).abs().max().item()
            span = (mine[r].max().double() - mine[r].min().double()).item()
            assert 0 < error <= BOUND * span, f"rank {rank} from {r}: {error} of {BOUND * span}"
    dist.destroy_process_group()


def alone(device):
    ops = torch.ops.trireme
    whole = rows_of(7, 600, 48).to(device)
    x = whole[:, 8:40]  # no copy: rows lie 48 values apart
    code, sizes = ops.encode(x, [600], 0.01)
    assert code.dtype == torch.uint8 and sizes.dtype == torch.int64 and sizes.device == x.device
    n = sizes.tolist()
    assert n[0] * 4 < x.numel() * 4, "repeated rows pay"
    back = ops.decode(code, n, [600], 32)
    assert (back - x).abs().max() <= 0.01 * (x.max() - x.min())
    assert torch.equal(ops.decode_async(code, n, [600], 32)[0], back)
    exact = ops.decode(*(lambda c, s: (c, s.tolist()))(*ops.encode(x, [600], 0.0)), [600], 32)
    assert torch.equal(exact, x)
    absolute = ops.encode(x, [100, 500], 0.5, "auto", False, False)
    assert (ops.decode(absolute[0], absolute[1].tolist(), [100, 500], 32) - x).abs().max() <= 0.5
    bad = code.clone()
    bad[:20] = 255
    for wrong, say in ((lambda: ops.decode(bad, n, [600], 32), "chunk 0"),
                       (lambda: ops.decode(code, [code.numel() + 4], [600], 32), "beyond the bytes"),
                       (lambda: ops.encode(x, [599], 0.01), "599 rows"),
                       (lambda: ops.encode(x.t(), [32], 0.01), "side by side"),
                       (lambda: ops.encode(x.double(), [600], 0.01), "float32"),
                       (lambda: ops.encode(x, [600], -1.0), "bound"),
                       (lambda: ops.encode(x, [600], 0.01, "autp"), "did you mean auto")):
        try:
            wrong()
        except (RuntimeError, ValueError) as e:
            assert say in str(e), (say, str(e))
        else:
            raise AssertionError(f"nothing was thrown: {say}")
    shape = ops.encode(torch.empty(600, 32, device="meta"), [600], 0.01)
    assert shape[0].dtype == torch.uint8 and shape[0].shape == code.shape and shape[1].shape == sizes.shape
    assert ops.decode(shape[0], n, [600], 32).shape == x.shape


def in_a_graph():
    """Captured once, replayed with other values."""
    x = rows_of(1, 2048, 64).cuda()
    torch.ops.trireme.encode(x, [2048], BOUND)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        code, sizes = torch.ops.trireme.encode(x, [2048], BOUND)
    x.copy_(rows_of(2, 2048, 64))
    graph.replay()
    back = torch.ops.trireme.decode(code, sizes.tolist(), [2048], 64)
    assert (back - x).abs().max() <= BOUND * (x.max() - x.min())


def main():
    library, docs = sys.argv[1:3]
    torch.ops.load_library(library)
    alone("cpu")
    devices = ["cpu"]
    if torch.cuda.is_available():
        alone("cuda")
        in_a_graph()
        if torch.cuda.device_count() > 1:
            devices.append("cuda")
    for device in devices:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(exchange, (library, docs, f"{folder}/meet", device), nprocs=2)
    print("passed: alone and all_to_all_single on", ", ".join(devices))


if __name__ == "__main__":
    main()
