"""Peer arms of bench dit_ranks: diffusers' FluxTransformer2DModel with random weights, its tokens shared by ranks through
its own context parallelism (cuDNN's attention, which is what torch has of its own for Hopper). PYTHONPATH as of
dit_step.py. A command is "WAY SIDE"; the answer, the time of a forward."""
import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FluxTransformer2DModel

from arm import Server

parser = argparse.ArgumentParser()
for name in ("way", "config", "port", "serve"):
    parser.add_argument("--" + name)
a = parser.parse_args()
rank, size = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=a.port, RANK=str(rank), WORLD_SIZE=str(size),
                  LOCAL_RANK=str(rank))
torch.cuda.set_device(rank)
dist.init_process_group("nccl", rank=rank, world_size=size, device_id=torch.device("cuda", rank))
config = {k: v for k, v in json.loads(a.config).items() if k != "_class_name"}
torch.manual_seed(1)
with torch.device("cuda"):
    torch.set_default_dtype(torch.bfloat16)
    model = FluxTransformer2DModel(**config).eval()
    torch.set_default_dtype(torch.float32)
model.set_attention_backend("_native_cudnn")
model.enable_parallelism(config=ContextParallelConfig(**{a.way.split("_")[0] + "_degree": size}))
if a.way.endswith("compiled"):
    model.compile_repeated_blocks()


def inputs(side):
    n, kind = side // 16, dict(dtype=torch.bfloat16, device="cuda")
    place = torch.arange(n * n)
    return dict(hidden_states=torch.randn(1, n * n, 64, **kind),
                encoder_hidden_states=torch.randn(1, 256, config["joint_attention_dim"], **kind),
                pooled_projections=torch.randn(1, config["pooled_projection_dim"], **kind),
                timestep=torch.full((1,), 0.7, **kind), txt_ids=torch.zeros(256, 3, **kind),
                img_ids=torch.stack([torch.zeros(n * n), place // n, place % n], 1).to(**kind), return_dict=False)


made = {}
server = Server(a.serve, rank)
with torch.no_grad():
    for command in server.commands():
        side = int(command[1])
        if side not in made:
            made[side] = inputs(side)
            model(**made[side])
            model(**made[side])
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        out = model(**made[side])[0]
        out.float().sum().item()
        server.answer({"ms": 1e3 * (time.perf_counter() - begin),
                       "peak_gib": torch.cuda.max_memory_allocated() / 2**30})
dist.destroy_process_group()
