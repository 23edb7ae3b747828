"""The peer's end of one arm (see bench/arm.h): waits for commands, steps, replies."""
import json
import os
import time


class Server:
    def __init__(self, folder, rank=0):
        self.command = open(os.open(f"{folder}/command.{rank}", os.O_RDWR), "rb", buffering=0)
        self.reply = os.open(f"{folder}/reply", os.O_RDWR) if rank == 0 else None

    def _send(self, message):
        if self.reply is not None:
            os.write(self.reply, (json.dumps(message) + "\n").encode())

    def commands(self):
        """The benchmark's own commands, until the end."""
        self._send({"ready": True})
        while (line := self.command.readline()) and not line.startswith(b"0"):
            yield line.decode().split()

    def answer(self, message):
        self._send(message)

    def run(self, step):
        """step() takes one training step and returns the global loss."""
        self._send({"ready": True})
        while n := int((self.command.readline() or b"0").split()[0]):
            begin, cpu = time.perf_counter(), time.thread_time()
            losses = [step() for _ in range(n)]
            self._send({"ms": 1e3 * (time.perf_counter() - begin), "cpu_ms": 1e3 * (time.thread_time() - cpu),
                        "losses": losses})


def read_safetensors(path):
    """(tensors by name, metadata), without the safetensors package."""
    import mmap
    import struct
    import torch
    types = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32}
    with open(path, "rb") as f:
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)  # gigabytes of tables: copied once, below
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        kind = types[t["dtype"]]
        flat = torch.frombuffer(data, dtype=kind, count=(end - begin) // kind.itemsize, offset=8 + n + begin)
        tensors[name] = flat.reshape(t["shape"]).clone()
    return tensors, metadata


def join_gloo(port):
    """(rank, size) of this process, one thread each: mpirun only tells each its rank."""
    import torch
    import torch.distributed as dist
    rank, size = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = port
    dist.init_process_group("gloo", rank=rank, world_size=size)
    return rank, size
