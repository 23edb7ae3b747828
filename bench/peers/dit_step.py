"""Peer arms of bench dit_step: diffusers' FluxTransformer2DModel with random weights. eager: as it is; graph: that as a
CUDA graph; compile: its blocks by torch.compile, then as a CUDA graph; autotune: the whole by torch.compile (fullgraph,
max-autotune), which has CUDA graphs of its own. --side: prepared before the first command. A command is "SIDE N", the
answer the mean time of N forwards. PYTHONPATH names the folder that holds diffusers (tests/gpu/run pack); beside torch
it needs huggingface_hub, safetensors and transformers."""
import argparse
import json
import time

import torch
from diffusers import FluxTransformer2DModel

from arm import Server

parser = argparse.ArgumentParser()
for name in ("arm", "config", "side", "device", "serve"):
    parser.add_argument("--" + name)
a = parser.parse_args()
config = {k: v for k, v in json.loads(a.config).items() if k != "_class_name"}
gpu, dtype = a.device == "cuda", torch.bfloat16 if a.device == "cuda" else torch.float32
with torch.device(a.device):
    torch.set_default_dtype(dtype)
    model = FluxTransformer2DModel(**config).eval()
    torch.set_default_dtype(torch.float32)
if a.arm == "compile":
    model.compile_repeated_blocks(fullgraph=True)


def synchronize():
    if gpu:
        torch.cuda.synchronize()


def prepared(side):
    """A function that takes one step."""
    n = side // 16
    with torch.device(a.device):
        inputs = dict(hidden_states=torch.randn(1, n * n, 64, dtype=dtype),
                      encoder_hidden_states=torch.randn(1, 256, config["joint_attention_dim"], dtype=dtype),
                      pooled_projections=torch.randn(1, config["pooled_projection_dim"], dtype=dtype),
                      timestep=torch.full((1,), 0.7, dtype=dtype), txt_ids=torch.zeros(256, 3, dtype=dtype),
                      img_ids=torch.stack([torch.zeros(n * n), torch.arange(n * n) // n,
                                           torch.arange(n * n) % n], 1).to(dtype), return_dict=False)

    def forward():
        return model(**inputs)[0]

    step = torch.compile(forward, mode="max-autotune", fullgraph=True) if a.arm == "autotune" else forward
    for _ in range(3):
        step()
    if a.arm in ("graph", "compile"):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward()
        step = graph.replay
    synchronize()
    return step


with torch.no_grad():
    steps = {int(a.side): prepared(int(a.side))} if int(a.side) else {}
    server = Server(a.serve)
    for command in server.commands():
        side, n = int(command[0]), int(command[1])
        if side not in steps:
            steps[side] = prepared(side)
        if side <= 1024:  # arms find the GPU awake alike
            steps[side]()
            synchronize()
        begin, cpu = time.perf_counter(), time.thread_time()
        for _ in range(n):
            steps[side]()
        synchronize()
        server.answer({"ms": 1e3 * (time.perf_counter() - begin) / n, "cpu_ms": 1e3 * (time.thread_time() - cpu) / n,
                       "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0})
