"""Peer arms of bench dit_step: diffusers' FluxTransformer2DModel with random weights. eager: as it is; graph: that as a
CUDA graph; compile: its blocks by torch.compile, then as a CUDA graph; autotune: the whole by torch.compile (fullgraph,
max-autotune), which has CUDA graphs of its own. PYTHONPATH names the folder that holds
diffusers (tests/gpu/run pack); beside torch it needs huggingface_hub, safetensors and transformers."""
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
side, dtype = int(a.side) // 16, torch.bfloat16 if a.device == "cuda" else torch.float32
with torch.device(a.device):
    torch.set_default_dtype(dtype)
    model = FluxTransformer2DModel(**config).eval()
    torch.set_default_dtype(torch.float32)
    inputs = dict(hidden_states=torch.randn(1, side * side, 64, dtype=dtype),
                  encoder_hidden_states=torch.randn(1, 256, config["joint_attention_dim"], dtype=dtype),
                  pooled_projections=torch.randn(1, config["pooled_projection_dim"], dtype=dtype),
                  timestep=torch.full((1,), 0.7, dtype=dtype), txt_ids=torch.zeros(256, 3, dtype=dtype),
                  img_ids=torch.stack([torch.zeros(side * side), torch.arange(side * side) // side,
                                       torch.arange(side * side) % side], 1).to(dtype), return_dict=False)


def synchronize():
    if a.device == "cuda":
        torch.cuda.synchronize()


def forward():
    return model(**inputs)[0]


with torch.no_grad():
    step = forward
    if a.arm == "compile":
        model.compile_repeated_blocks(fullgraph=True)
    if a.arm == "autotune":
        step = torch.compile(forward, mode="max-autotune", fullgraph=True)
    for _ in range(3):
        out = step()
    if a.arm in ("graph", "compile"):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = forward()
        step = graph.replay
    synchronize()
    server = Server(a.serve)
    for command in server.commands():
        if command[0] == "memory":
            server.answer({"peak_gib": torch.cuda.max_memory_allocated() / 2**30 if a.device == "cuda" else 0.0})
            continue
        n = int(command[0])
        begin, cpu = time.perf_counter(), time.thread_time()
        for _ in range(n):
            step()
        synchronize()
        server.answer({"ms": 1e3 * (time.perf_counter() - begin), "cpu_ms": 1e3 * (time.thread_time() - cpu), "losses": []})
