#!/usr/bin/env python3
"""What diffusers' cache hooks decide and give on a small FluxTransformer2DModel of random weights, and a transcript of
TeaCache on the same model, for tests/unit/sdit_test.cpp.

usage: cache_vectors.py FOLDER [seed]

FOLDER/flux_cache: the model (config.json, diffusion_pytorch_model.safetensors). FOLDER/caches.safetensors: noise
[1, tokens, 16], text [1, 6, 8], pooled [1, 8], grid i64 [rows, columns] of tokens, sigmas [steps + 1], plain (final
latents without a cache), and of each arm A: computed_A u8 [steps] (1: the blocks, or their attention, ran), final_A.
Texts of the metadata hold each arm's settings. Needs diffusers 0.42 and safetensors.
"""
import json
import pathlib
import sys

import torch
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel, PyramidAttentionBroadcastConfig
from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
from safetensors.torch import save_file

STEPS, ROWS, COLUMNS = 14, 4, 6


class Arm:
    """A fresh model and the number of times that a layer of its second block ran in each step."""

    def __init__(self, folder):
        self.model = FluxTransformer2DModel.from_pretrained(folder).eval()
        self.runs, self.sigma = 0, 1.0
        self.model.transformer_blocks[1].attn.to_q.register_forward_pre_hook(lambda *_: self.count())

    def count(self):
        self.runs += 1

    def sample(self, case, before=lambda step: None):
        x, computed = case["noise"].clone(), []
        rows, columns = case["grid"].tolist()
        image_ids = torch.zeros(rows, columns, 3)
        image_ids[..., 1] += torch.arange(rows)[:, None]
        image_ids[..., 2] += torch.arange(columns)[None]
        sigmas = case["sigmas"].tolist()
        for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
            self.sigma, self.runs = sigma, 0
            before(step)
            with torch.no_grad(), self.model.cache_context("cond"):
                v = self.model(hidden_states=x, encoder_hidden_states=case["text"], pooled_projections=case["pooled"],
                               timestep=torch.tensor([sigma]), img_ids=image_ids.reshape(-1, 3),
                               txt_ids=torch.zeros(case["text"].shape[1], 3), return_dict=False)[0]
            x = x + (following - sigma) * v
            computed.append(self.runs > 0)
        return x, torch.tensor(computed, dtype=torch.uint8)


class TeaCache:
    """arXiv 2411.19108: the summed polynomial of the first block's modulated input's relative change."""

    def __init__(self, arm, polynomial, threshold):
        self.polynomial, self.threshold = polynomial, threshold
        self.sum, self.last, self.residual, self.ran, self.step = 0.0, None, None, [], 0
        model = arm.model
        model.transformer_blocks[0].norm1.register_forward_hook(lambda m, a, out: self.decide(out[0]))
        model.transformer_blocks[0].register_forward_pre_hook(self.enter, with_kwargs=True)
        model.norm_out.register_forward_pre_hook(self.leave)

    def enter(self, module, args, kwargs):
        self.entry = kwargs["hidden_states"]

    def decide(self, modulated):
        self.run = self.step in (0, STEPS - 1)
        if not self.run:
            change = ((modulated - self.last).abs().mean() / self.last.abs().mean()).item()
            for power, factor in enumerate(reversed(self.polynomial)):
                self.sum += factor * change ** power
            self.run = self.sum >= self.threshold
        if self.run:
            self.sum = 0.0
        self.last = modulated
        self.ran.append(self.run)
        self.step += 1

    def leave(self, module, args):
        if self.run:
            self.residual = args[0] - self.entry
        return (self.entry + self.residual, *args[1:])


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 5)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=False, axes_dims_rope=(4, 6, 6))
    for name, parameter in model.named_parameters():  # biases and norms too; little of the time: steps must be alike
        parameter.data += (0.02 if "time_text" in name else 0.15) * torch.randn_like(parameter)
    model.save_pretrained(folder / "flux_cache")
    base = torch.linspace(1, 1 / STEPS, STEPS)
    case = {"noise": torch.randn(1, ROWS * COLUMNS, 16), "text": torch.randn(1, 6, 8), "pooled": torch.randn(1, 8),
            "grid": torch.tensor([ROWS, COLUMNS]), "sigmas": torch.cat([3 * base / (1 + 2 * base), torch.zeros(1)])}
    arrays, settings = dict(case), {}
    arrays["plain"], _ = Arm(folder / "flux_cache").sample(case)

    def add(name, result, **keys):
        arrays["final_" + name], arrays["computed_" + name] = result
        settings[name] = json.dumps(keys)
        error = (result[0] - arrays["plain"]).abs().max()
        print(name, "".join(str(c) for c in result[1].tolist()), f"max difference to plain {error:.3g}")

    for threshold in (0.18, 0.25):
        arm = Arm(folder / "flux_cache")
        arm.model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        add(f"first_block{int(100 * threshold)}", arm.sample(case), threshold=threshold)
    for skip, low, high in ((2, 100, 800), (3, 450, 930)):
        arm = Arm(folder / "flux_cache")
        arm.model.enable_cache(PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=skip, spatial_attention_timestep_skip_range=(low, high),
            current_timestep_callback=lambda: 1000 * arm.sigma))
        add(f"pab{skip}", arm.sample(case), spatial=skip, range=[low, high])
    for lite, order, interval in ((False, 1, 3), (False, 2, 4), (True, 1, 3)):
        arm = Arm(folder / "flux_cache")
        apply_taylorseer_cache(arm.model, TaylorSeerCacheConfig(
            cache_interval=interval, disable_cache_before_step=3, max_order=order, taylor_factors_dtype=torch.float32,
            use_lite_mode=lite))
        add(f"taylor{'_lite' if lite else ''}{order}", arm.sample(case), lite=lite, order=order, interval=interval,
            warmup=3)
    for polynomial, threshold in (([0, 0, 0, 1, 0], 0.3), ([498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861], 0.35)):
        arm = Arm(folder / "flux_cache")
        tea = TeaCache(arm, polynomial, threshold)
        final, _ = arm.sample(case)
        add(f"teacache{int(100 * threshold)}", (final, torch.tensor(tea.ran, dtype=torch.uint8)), polynomial=polynomial,
            threshold=threshold)
    save_file(arrays, folder / "caches.safetensors", metadata=settings)


if __name__ == "__main__":
    main()
