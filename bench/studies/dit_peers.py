#!/usr/bin/env python3
"""First-block cache with TaylorSeer by its package (cache-dit, over diffusers' FluxTransformer2DModel) beside our caches.

  python3 bench/studies/dit_peers.py recipes/sdit/study_caches.yaml --out runs/cache_dit [key=value ...]
The program draws the file's arms; then diffusers draws the same pictures (prompts, noise, levels, guidance of `dense`) without a
cache, which shows how near both models are, and with cache-dit at the thresholds, warm-up and order of ARMS; then the program
judges all of them alike. What is done is not done again. Wants torch, diffusers, cache-dit, safetensors, PyYAML and Pillow."""
import argparse
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import cache_dit
import torch
import yaml
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file

from dit import ROOT, load, table

# threshold, warm-up steps, order of the series; a, b, c: study_caches.yaml's first_block_taylor_a, _b, _c.
ARMS = {"diffusers": None, "cache_dit_a": (0.05, 3, 1), "cache_dit_b": (0.1, 3, 1), "cache_dit_c": (0.2, 3, 1),
        "cache_dit_d": (0.4, 3, 1), "cache_dit_c_order_2": (0.2, 3, 2)}


def first_noise(o, model, settings):
    """Noise by seed, as the program draws it: what is left of it after one step of a model whose velocity is 0."""
    zero, out = o.out / "zero_model", o.out / "zero"
    torch.nn.init.zeros_(model.proj_out.weight), torch.nn.init.zeros_(model.proj_out.bias)
    model.save_pretrained(zero)
    for name in ("trireme.json", "prompts.safetensors"):
        shutil.copy(ROOT / settings["model"] / name, zero)
    job = {k: settings[k] for k in ("size", "seed", "count")}
    (o.out / "zero.yaml").write_text(yaml.dump({**job, "model": str(zero), "held_out": 1, "steps": 1, "latents": True}))
    sample(o, o.out / "zero.yaml", out)
    return {settings["seed"] + i: load_file(out / "plain" / f"{i:05}.safetensors")["latents"] for i in range(job["count"])}


def sample(o, file, out, more=()):
    subprocess.run([o.trireme, "sample", file, *more, "--out", out], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Drawing:
    """diffusers' model in f32 with the study's prompts, noise and levels."""

    def __init__(self, o, settings):
        self.folder, self.guidance = ROOT / settings["model"], settings["guidance"]
        described = json.loads((self.folder / "trireme.json").read_text())
        self.words, self.factor = described["prompts"], described["latent_factor"]
        self.tables = {k: v.float() for k, v in load_file(self.folder / "prompts.safetensors").items()}
        self.noise = first_noise(o, self.load(), settings)

    def load(self):
        return FluxTransformer2DModel.from_pretrained(self.folder, torch_dtype=torch.float32).eval()

    def text(self, prompt):
        """[2, tokens, width]: the prompt's and, for guidance, none's."""
        size, color, texture, shape, cell, ground = re.fullmatch(
            r"a (\w+) (\w+) (?:(striped) )?(\w+) ((?:at|in) .*) on a (\w+) background", prompt).groups()
        said = ["ground " + ground, "size " + size, "color " + color, "texture " + (texture or "plain"), "shape " + shape,
                "cell " + cell]
        ids = torch.zeros(2, self.words["tokens"], dtype=torch.long)
        ids[0, :len(said)] = torch.tensor([1 + self.words["words"].index(word) for word in said])
        return self.tables["prompts.embedding"][ids] + self.tables["prompts.position"]

    def draw(self, model, prompt, seed, sigmas):
        """Latents [C, F, H, W] after Euler's steps; both halves of guidance in one batch, as the program has them."""
        c, f, h, w = self.noise[seed].shape
        x = self.noise[seed].reshape(c, h // 2, 2, w // 2, 2).permute(1, 3, 0, 2, 4).reshape(1, h * w // 4, 4 * c)
        place = torch.cartesian_prod(torch.arange(1), torch.arange(h // 2), torch.arange(w // 2)).float()
        text = self.text(prompt)
        fixed = dict(encoder_hidden_states=text, pooled_projections=torch.zeros(2, model.config.pooled_projection_dim),
                     txt_ids=torch.zeros(text.shape[1], 3), img_ids=place, return_dict=False)
        for sigma, after in zip(sigmas, sigmas[1:]):
            with_text, without = model(hidden_states=x.expand(2, -1, -1), timestep=torch.full((2,), sigma), **fixed)[0]
            x = x + (after - sigma) * (without + self.guidance * (with_text - without))
        return x.reshape(h // 2, w // 2, c, 2, 2).permute(2, 0, 3, 1, 4).reshape(c, f, h, w)

    def image(self, latents):
        n, (c, _, h, w) = self.factor, latents.shape
        pixels = latents.reshape(3, n, n, h, w).permute(3, 1, 4, 2, 0).reshape(h * n, w * n, 3)
        return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())


def draw_arm(drawing, folder, rule, batches):
    folder.mkdir(parents=True, exist_ok=True)
    model, apart = drawing.load(), 0
    if rule:
        threshold, warmup, order = rule
        cache_dit.enable_cache(
            model, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, enable_separate_cfg=False,
                                                        residual_diff_threshold=threshold, max_warmup_steps=warmup),
            calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order))
    for batch in batches:
        steps = len(batch["sigmas"]) - 1
        for picture in batch["pictures"]:
            stem, done = f"{picture['index']:05}", folder / f"batch_{picture['index']:05}.json"
            if done.exists():
                continue
            if rule:  # left to itself it begins anew one step late
                cache_dit.refresh_context(model, num_inference_steps=steps)
            began = time.perf_counter()
            latents = drawing.draw(model, picture["prompt"], picture["seed"], batch["sigmas"])
            seconds, skipped = time.perf_counter() - began, set(model._cached_steps if rule else [])
            apart = max(apart, (latents - load_file(folder.parent / "dense" / f"{stem}.safetensors")["latents"]).abs().max().item())
            drawing.image(latents).save(folder / f"{stem}.png")
            computed = [float(i not in skipped) for i in range(steps)]
            done.write_text(json.dumps({"pictures": [picture], "steps": steps, "seconds": seconds, "series": {"computed": computed},
                                        "report": {"computed_steps": sum(computed), "steps": steps}}))
    print(f"{folder.name}: at most {apart:.2g} from dense", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trireme", default=os.environ.get("TRIREME_BINARY", "trireme"))
    parser.add_argument("overrides", nargs="*")
    o = parser.parse_intermixed_args()
    o.out = o.out.resolve()
    more = [*o.overrides, "latents=true"]
    sample(o, o.file, o.out, more)
    settings = yaml.safe_load((o.out / "dense" / "config.resolved.yaml").read_text())
    batches = [json.loads(file.read_text()) for file in sorted((o.out / "dense").glob("batch_*.json"))]
    with torch.no_grad():
        drawing = Drawing(o, settings)
        for arm, rule in ARMS.items():
            draw_arm(drawing, o.out / arm, rule, batches)
    sample(o, o.file, o.out, [*more, "arms={" + ", ".join(arm + ": []" for arm in ARMS) + "}"])
    print(table(load(o.out)[0]))


if __name__ == "__main__":
    main()
