"""Models of open_clip 3.3.0 (pip: open_clip_torch, transformers) beside ours.

  vectors             small models' features as JSON: tests/reference/clip/open_clip_models.json
  parity TRIREME [MODEL ...]   `trireme embed` on full models that open_clip made and saved
  strings TRIREME     ViT-S-32 with OpenCLIP's own vocabulary: texts as its tokenizers read them, before and after export
  exported FOLDER IMAGES TEXTS OUT   what open_clip makes of a folder, its own tokenizer and transform included

Every parameter and buffer is drawn anew from a hash of its name, so that none is 0 or 1 and no file of weights is needed.
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file

TEXT = {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 2}
SMALL = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": {**VIT, "mlp_ratio": 2.0},
                      "text_cfg": {**TEXT, "mlp_ratio": 3.0}},
    "resnet": {"embed_dim": 20, "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32,
                                               "patch_size": None}, "text_cfg": TEXT},
}


# Those that `model.name` knows.
NAMED = [n + q for n in ["ViT-S-32", "ViT-S-16", "ViT-S-32-alt", "ViT-S-16-alt", "ViT-M-32", "ViT-B-32", "ViT-B-16",
                         "ViT-L-16", "ViT-L-14", "ViT-L-14-336", "RN50", "RN101"] for q in ["", "-quickgelu"]
         if n + q in open_clip.list_models()]


def name_hash(name):  # FNV-1a
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = (h ^ b) * 0x100000001B3 % 2**64
    return h


def uniform(name, n):
    """n numbers of [-1, 1): splitmix64 counted from the name's hash."""
    with np.errstate(over="ignore"):
        z = np.uint64(name_hash(name)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1


def place_and_spread(name, shape):
    if name.endswith("num_batches_tracked"):
        return 1000, 0
    if name == "logit_scale":
        return 2.5, 1
    if "embedding" in name:
        return 0, 0.5
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return 1, 0.4
    if len(shape) == 1:
        return 0, 0.3
    fan = shape[0] if name.endswith("proj") or name == "text_projection" else math.prod(shape[1:])
    return 0, math.sqrt((4 if len(shape) == 4 else 3) / fan)


def draw(model):
    with torch.no_grad():
        for name, t in model.state_dict().items():
            place, spread = place_and_spread(name, tuple(t.shape))
            values = place + spread * uniform(name, t.numel())
            t.copy_(torch.from_numpy(values).reshape(t.shape).to(t.dtype))
    return model.eval()


def inputs(config, n):
    size, text = config["vision_cfg"]["image_size"], config["text_cfg"]
    # Blocks of one colour: noise of single pixels would average out in a deep tower.
    blocks = torch.from_numpy(2 * uniform("pixels", n * 3 * 64)).float().reshape(n, 3, 8, 8)
    pixels = blocks.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    ids = torch.zeros(n, text["context_length"], dtype=torch.long)
    for i in range(n):
        length = 1 + (5 * i + 3) % (text["context_length"] - 2)
        words = (uniform(f"ids {i}", length) + 1) / 2 * (text["vocab_size"] - 2)
        ids[i, : length + 2] = torch.tensor([text["vocab_size"] - 2, *map(int, words), text["vocab_size"] - 1])
    return pixels, ids


def features(model, pixels, ids):
    with torch.no_grad():
        return model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)


def vectors():
    cases = {}
    for name, config in SMALL.items():
        model = draw(open_clip.CLIP(**config).double())
        pixels, ids = inputs(config, 4)
        image, text = features(model, pixels.double(), ids)
        rounded = lambda t: [[float(f"{v:.9g}") for v in row] for row in t.tolist()]
        cases[name] = {"config": {"model_cfg": config}, "tensors": {k: list(v.shape) for k, v in model.state_dict().items()},
                       "ids": ids.tolist(), "image": rounded(image), "text": rounded(text)}
    named = {n: open_clip.get_model_config(n) for n in NAMED}
    print(json.dumps({"open_clip": open_clip.__version__, "cases": cases, "named": named}))


def parity(trireme, names):
    torch.set_num_threads(2)
    worst = {}
    for name in names or ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-B-16-quickgelu", "RN50", "RN50-quickgelu"]:
        config = open_clip.get_model_config(name)
        model = draw(open_clip.create_model(name))
        pixels, ids = inputs(config, 8)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
            save_file(model.state_dict(), folder / "open_clip_model.safetensors")
            save_file({"pixels": pixels}, folder / "pixels.safetensors")
            save_file({"ids": ids}, folder / "ids.safetensors")
            subprocess.run([trireme, "embed", folder, "--pixels", folder / "pixels.safetensors", "--ids",
                            folder / "ids.safetensors", "--out", folder / "out.safetensors"], check=True,
                           stdout=subprocess.DEVNULL)
            ours = load_file(folder / "out.safetensors")
        image, text = features(model, pixels, ids)
        spread = lambda f: float((f - f.mean(0)).norm(dim=1).mean())  # rows differ: the towers are not saturated
        worst[name] = (float((ours["image_features"] - image).abs().max()), float((ours["text_features"] - text).abs().max()),
                       float((ours["logit_scale"] / model.logit_scale.detach().exp() - 1).abs()))
        print(f"{name:20} image {worst[name][0]:.1e}  text {worst[name][1]:.1e}  logit_scale {worst[name][2]:.1e}  "
              f"spread {spread(image):.2f} {spread(text):.2f}", flush=True)
    bad = [n for n, w in worst.items() if not max(w) <= (1e-4 if n.startswith("RN") else 1e-5)]
    sys.exit(f"apart: {bad}" if bad else 0)


TEXTS = ["a photo of a cat", "It's the DOG's 3rd day, isn't it?", "caf\u00e9 \u2014 na\u00efve &amp; \u00fcber", "", "\u732b\u3068\u72ac",
         "emoji \U0001f600 and tabs\t here", "word " * 100, "x" * 300, "<b>html</b> &lt;tag&gt; don't we'll they've 1234 5.67"]


def strings(trireme):
    name = "ViT-S-32"
    model = draw(open_clip.create_model(name))
    vocabulary = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    ids = open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        wanted = model.encode_text(ids, normalize=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        hub = folder / "hub"
        hub.mkdir()
        (hub / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
        save_file(model.state_dict(), hub / "open_clip_model.safetensors")
        (folder / "texts").write_text("\n".join(TEXTS) + "\n")
        run = lambda *words: subprocess.run([trireme, *words], check=True, stdout=subprocess.DEVNULL)
        words = ["--texts", folder / "texts", "--out", folder / "out.safetensors"]
        run("embed", hub, "--tokenizer", vocabulary, *words)
        first = load_file(folder / "out.safetensors")["text_features"]
        run("export", hub, "--tokenizer", vocabulary, "--out", folder / "again")
        run("embed", folder / "again", *words)
        second = load_file(folder / "out.safetensors")["text_features"]
        theirs = open_clip.get_tokenizer(f"local-dir:{folder / 'again'}")(TEXTS)
        back, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'again'}")
        same = all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())
        with torch.no_grad():
            third = back.eval().encode_text(theirs, normalize=True)
    apart = {n: float((f - wanted).abs().max()) for n, f in [("ours", first), ("exported, ours", second), ("exported, theirs", third)]}
    print(apart, "tensors equal" if same else "tensors differ")
    sys.exit(0 if same and max(apart.values()) <= 1e-5 else "apart")


def exported(folder, images, texts, out):
    from PIL import Image
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    files = sorted(pathlib.Path(images).iterdir())
    pixels = torch.stack([transform(Image.open(f)) for f in files])
    ids = tokenizer(pathlib.Path(texts).read_text().splitlines())
    image, text = features(model.eval(), pixels, ids)
    save_file({"image_features": image, "text_features": text, "pixels": pixels, "ids": ids}, out)


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "parity":
        parity(words[0], words[1:])
    else:
        {"vectors": vectors, "strings": strings, "exported": exported}[command](*words)
