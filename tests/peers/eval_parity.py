#!/usr/bin/env python3
"""A model trained here, exported, and judged by open_clip's and CLIP_benchmark's own evaluation code beside `trireme eval`.

Of a run on a prepared file, its held-out pictures (--all: all of them; one of each caption) become test sets in
CLIP_benchmark's layout:
  exact   PNG at the model's size: both sides see the same pixels, so every metric must agree to the last digit
  decoded JPEG at twice the size: each side decodes and resizes by itself; at most 3 samples apart
each for retrieval (one or two captions a picture) and for classification (folders as classes, three templates).

usage: eval_parity.py --trireme BINARY --run RUN --data PREPARED.h5 [--all] [--work FOLDER]
Needs open_clip_torch, clip_benchmark, webdataset, h5py, Pillow. Prints one line a metric; exit 1 if one is off.
"""
import argparse
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import numpy as np

TEMPLATES = ["a picture of {c}", "clip art: {c}.", "a drawing of a {c}, in colour"]


def pictures_of(path, everything):
    """Pictures [n, S, S, 3], captions and class numbers, one of each caption; class names."""
    import h5py
    with h5py.File(path) as f:
        seen, rows = set(), []
        caption_id = f["caption_id"][:]
        for i in np.flatnonzero(f["held_out"][:] | everything):
            if caption_id[i] not in seen:
                seen.add(caption_id[i])
                rows.append(i)
        offsets, text = f["caption_offsets"][:], f["caption_bytes"][:].tobytes()
        captions = [text[offsets[i] : offsets[i + 1]].decode() for i in rows]
        images = f["images"][:][rows].transpose(0, 2, 3, 1)
        names = json.loads(f["classes"][:].tobytes())
        return images, captions, f["class_id"][:][rows], names


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def picture(pixels, scale):
    from PIL import Image
    image, out = Image.fromarray(pixels), io.BytesIO()
    if scale == 1:
        image.save(out, "PNG")
    else:
        image.resize((scale * image.width, scale * image.height), Image.BICUBIC).save(out, "JPEG", quality=90)
    return "png" if scale == 1 else "jpg", out.getvalue()


def write_set(folder, images, scale, label):
    """label(i) -> (extension, bytes). Two shards."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("2\n")
    half = (len(images) + 1) // 2
    for shard in range(2):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(shard * half, min(len(images), (shard + 1) * half)):
                extension, data = picture(images[i], scale)
                add(tar, f"s{i:07d}.{extension}", data)
                extension, data = label(i)
                add(tar, f"s{i:07d}.{extension}", data)


def make_sets(work, images, captions, classes, names):
    firsts = [c.split(",")[0].strip() for c in captions]  # the title alone is a second caption, where no other has it
    texts = [[c] + ([f] if f != c and firsts.count(f) == 1 and f not in captions else [])
             for c, f in zip(captions, firsts)]
    present = sorted(set(classes.tolist()))
    for kind, scale in (("exact", 1), ("decoded", 2)):
        folder = work / f"{kind}_retrieval"
        write_set(folder, images, scale, lambda i: ("txt", "\n".join(texts[i]).encode()))
        (folder / "dataset_type.txt").write_text("retrieval\n")
        folder = work / f"{kind}_classes"
        write_set(folder, images, scale, lambda i: ("cls", str(present.index(classes[i])).encode()))
        (folder / "classnames.txt").write_text("".join(names[c] + "\n" for c in present))
        (folder / "zeroshot_classification_templates.txt").write_text("".join(t + "\n" for t in TEMPLATES))
    return sum(map(len, texts))


def theirs(model, tokenizer, transform, folder):
    """What clip_benchmark and open_clip_train say of the set."""
    import torch
    from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from open_clip_train.train import get_clip_metrics
    zeroshot_classification.float = lambda x: float(np.asarray(x).item())  # numpy 2.4 has no float() of an array of one
    data = build_wds_dataset("wds", transform, data_dir=str(folder))
    if data.classes:
        loader = torch.utils.data.DataLoader(data, batch_size=64)
        found = zeroshot_classification.evaluate(model, loader, tokenizer, data.classes, data.templates, "cpu", amp=False)
        return {"clip_benchmark": {"zero_shot_top1": found["acc1"], "zero_shot_top5": found["acc5"],
                                   "zero_shot_mean_per_class": found["mean_per_class_recall"]}}
    loader = torch.utils.data.DataLoader(data, batch_size=64, collate_fn=image_captions_collate_fn)
    found = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    result = {"clip_benchmark": {}}
    for k in (1, 5, 10):
        result["clip_benchmark"][f"image_to_text_r{k}"] = found[f"text_retrieval_recall@{k}"]
        result["clip_benchmark"][f"text_to_image_r{k}"] = found[f"image_retrieval_recall@{k}"]
    with torch.no_grad():
        images, texts = zip(*[(model.encode_image(x, normalize=True),
                               model.encode_text(tokenizer([t[0] for t in texts]), normalize=True)) for x, texts in loader])
    found = get_clip_metrics(torch.cat(images), torch.cat(texts), model.logit_scale.exp().detach())
    result["open_clip"] = {name.replace("R@", "r"): value for name, value in found.items()}
    return result


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def main():
    parse = argparse.ArgumentParser()
    for name in ("--trireme", "--run", "--data"):
        parse.add_argument(name, required=True)
    parse.add_argument("--all", action="store_true")
    parse.add_argument("--work", default=None)
    a = parse.parse_args()
    import open_clip
    work = pathlib.Path(a.work or tempfile.mkdtemp())
    images, captions, classes, names = pictures_of(a.data, a.all)
    texts = make_sets(work, images, captions, classes, names)
    print(f"{len(images)} pictures, {texts} captions, {len(set(classes.tolist()))} classes")
    run(a.trireme, "export", a.run, "--format", "openclip", "--out", work / "exported")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{work}/exported")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{work}/exported")
    model.eval()
    off = False
    for kind, allowed in (("exact", 0), ("decoded", 3)):
        for task in ("retrieval", "classes"):
            folder = work / f"{kind}_{task}"
            for protocol, expected in theirs(model, tokenizer, transform, folder).items():
                for source in ((a.run, work / "exported") if kind == "exact" else (a.run,)):
                    ours = json.loads(run(a.trireme, "eval", source, "--data", folder, "--protocol", protocol, "--json"))
                    for name, value in expected.items():
                        if np.isnan(value):  # top-5 of less than five classes
                            continue
                        if "rank" in name or "per_class" in name:
                            samples, good = abs(ours[name] - value), kind != "exact" or abs(ours[name] - value) < 1e-9
                        else:
                            n = texts if name.startswith("text_to_image") and protocol == "clip_benchmark" else len(images)
                            samples = abs(round(ours[name] * n) - round(value * n))
                            good = samples <= allowed
                        off |= not good
                        print(f"{'ok ' if good else 'OFF'} {kind:8} {protocol:15} {name:27} ours {ours[name]:<20.12g} "
                              f"theirs {value:<20.12g} apart {samples:.3g}")
    return int(off)


if __name__ == "__main__":
    sys.exit(main())
