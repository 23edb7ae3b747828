#!/usr/bin/env python3
"""FLOPs of forward and backward on one sample as torch.utils.flop_counter counts them, for the formulas of recipes:
tests/reference/flops.json. Needs torch and open_clip_torch; no weights, everything on the device "meta".
  tests/reference/flops.py > tests/reference/flops.json"""
import json
import sys
from pathlib import Path

import open_clip
import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench/peers"))
from transformer import Transformer  # noqa: E402


def count(step, samples):
    """A fused attention's backward computes the scores again: that is no work of the model, so plain products here."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / samples


def mlp(sizes, batch=4):
    with torch.device("meta"):
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
        x = torch.empty(batch, sizes[0])
    return count(lambda: nn.Sequential(*layers)(x).sum().backward(), batch)


def transformer(layers, width, heads, vocab, context, batch=2):
    shapes = {"tokens": (vocab, width), "positions": (context, width), f"blocks.{layers - 1}.up": (1,)}
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        model = Transformer(weights, heads)
        tokens = torch.empty(batch, context + 1, dtype=torch.long)
    return count(lambda: model(tokens).backward(), batch)


def clip(name, batch=2):
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
        size = model.visual.image_size
        size = size if isinstance(size, int) else size[0]
        pixels, ids = torch.empty(batch, 3, size, size), torch.empty(batch, 77, dtype=torch.long)

    def step():
        image, text = model.encode_image(pixels), model.encode_text(ids)
        (image.sum() + text.sum()).backward()

    return count(step, batch)


def main():
    cases = {"mlp": [{"sizes": s, "flops": mlp(s)} for s in ([64, 128, 10], [1024, 8192, 8192, 8192, 10])],
             "transformer": [{**shape, "flops": transformer(**shape)}
                             for shape in ({"layers": 2, "width": 32, "heads": 4, "vocab": 50, "context": 12},
                                           {"layers": 12, "width": 1024, "heads": 16, "vocab": 256, "context": 64})],
             "clip": [{"model": name, "flops": clip(name)} for name in ("ViT-B-32", "RN50")],
             "torch": torch.__version__, "open_clip": open_clip.__version__}
    print(json.dumps(cases, indent=1))


main()
