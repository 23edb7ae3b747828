"""Peer arms of bench sampling: whole pictures by diffusers' FluxTransformer2DModel with random weights, in a process with
one set of weights. diffusers: as it is; cache_dit: with that package's DBCache over the first block (F1B0) and
TaylorSeer, its pattern fixed as in recipes/sdit/speed.yaml's first_block_taylor; _compiled: the same with
compile_repeated_blocks. A command is "run ARM". PYTHONPATH names the folder that holds diffusers and cache_dit
(tests/gpu/run pack); beside torch they need huggingface_hub, safetensors, transformers and PyYAML."""
import argparse
import json
import math
import time

import torch
from diffusers import FluxTransformer2DModel

from arm import Server

parser = argparse.ArgumentParser()
for name in ("config", "picture", "device", "serve"):
    parser.add_argument("--" + name)
a = parser.parse_args()
picture = json.loads(a.picture)  # tokens [rows, columns], text (tokens), steps, guidance, precision
torch.manual_seed(1)
config = {k: v for k, v in json.loads(a.config).items() if k not in ("_class_name", "trireme")}
gpu, dtype, steps = a.device == "cuda", getattr(torch, picture["precision"]), picture["steps"]
# Without distilled guidance both halves go in one batch, as ours do.
halves = 1 if config.get("guidance_embeds") or picture["guidance"] == 1 else 2


def model_of(arm, weights=None):
    with torch.device("meta" if weights else a.device):
        torch.set_default_dtype(dtype)
        model = FluxTransformer2DModel(**config).eval()
        torch.set_default_dtype(torch.float32)
    if weights:
        model.load_state_dict(weights, assign=True)
    if arm.startswith("cache_dit"):
        import cache_dit
        # From 1 on it would not compare at all; ours compares, and so does whoever does not fix the pattern.
        cache_dit.enable_cache(
            model, cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=math.nextafter(1, 0),
                max_warmup_steps=0, max_continuous_cached_steps=2, num_inference_steps=steps, enable_separate_cfg=False),
            calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1))
    if arm.endswith("compiled"):
        model.compile_repeated_blocks(fullgraph=True)
    return model


def drawn():
    """Noise as tokens, and what stays the same in all steps."""
    (rows, columns), kind = picture["tokens"], dict(dtype=dtype)
    with torch.device(a.device):
        place = torch.arange(rows * columns)
        inputs = dict(encoder_hidden_states=torch.randn(halves, picture["text"], config["joint_attention_dim"], **kind),
                      pooled_projections=torch.randn(halves, config["pooled_projection_dim"], **kind),
                      txt_ids=torch.zeros(picture["text"], 3, **kind), return_dict=False,
                      img_ids=torch.stack([0 * place, place // columns, place % columns], 1).to(dtype))
        if config.get("guidance_embeds"):
            inputs["guidance"] = torch.full((1,), picture["guidance"], **kind)
        return torch.randn(1, rows * columns, config["in_channels"]), inputs


def draw(model, x, inputs):
    """Euler's steps from level 1 to 0; x stays in f32."""
    for i in range(steps):
        level = torch.full((halves,), 1 - i / steps, dtype=dtype, device=a.device)
        v = model(hidden_states=x.to(dtype).expand(halves, -1, -1), timestep=level, **inputs)[0].float()
        if halves == 2:
            v = v[1:] + picture["guidance"] * (v[:1] - v[1:])
        x = x - v / steps
    return x.sum().item()  # waits


def run(arm):
    if arm not in models:
        models[arm] = model_of(arm, weights)
    model, cached = models[arm], arm.startswith("cache_dit")
    if cached:  # by itself it begins anew one step late: a picture would begin with what the last one left
        import cache_dit
        cache_dit.refresh_context(model, num_inference_steps=steps)
    x, inputs = drawn()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin, cpu = time.perf_counter(), time.thread_time()
    draw(model, x, inputs)
    ms, cpu = 1e3 * (time.perf_counter() - begin) / steps, 1e3 * (time.thread_time() - cpu) / steps
    return {"ms": ms, "cpu_ms": cpu, "steps": steps, "computed": steps - (len(model._cached_steps) if cached else 0),
            "tokens": x.shape[1], "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0}


with torch.no_grad():
    models = {"diffusers": model_of("diffusers")}
    weights = models["diffusers"].state_dict()
    server = Server(a.serve)
    for command in server.commands():
        try:
            server.answer(run(command[1]))
        except Exception as e:  # one arm that cannot run leaves the others
            server.answer({"skipped": f"{type(e).__name__}: {e}"[:300]})
