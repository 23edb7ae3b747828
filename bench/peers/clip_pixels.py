"""Peer arm of bench clip_pixels: webdataset + torchvision as open_clip puts them together; and the tars for all arms.

--make writes --shards tars of JPEGs (quality 90) of photographs of scikit-image: pieces cut out at their own resolution,
put side by side where the picture wanted is larger, with a one-line caption each.
"""
import argparse
import io
import json
import multiprocessing
import os
import tarfile
import time

SAMPLES = {256: 512, 512: 256, 1024: 128}  # a core, by shorter side
BATCH = 64
PHOTOS = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "ihc.png",
          "hubble_deep_field.jpg", "retina.jpg"]  # fmt: skip


def collage(photos, rng, height, width):
    import numpy as np
    canvas = np.zeros((height, width, 3), np.uint8)
    y = 0
    while y < height:
        x, row = 0, None
        while x < width:
            photo = photos[rng.integers(len(photos))]
            h = min(height - y, photo.shape[0]) if row is None else row
            h = min(h, photo.shape[0])
            row = h if row is None else row
            w = min(width - x, photo.shape[1])
            top, left = rng.integers(photo.shape[0] - h + 1), rng.integers(photo.shape[1] - w + 1)
            piece = photo[top:top + h, left:left + w]
            canvas[y:y + h, x:x + w] = piece[:, ::-1] if rng.integers(2) else piece
            x += w
        y += row
    return canvas


def make_shard(folder, short, shard, begin, end):
    import numpy as np
    import skimage.data
    from PIL import Image
    root = os.path.dirname(skimage.data.__file__)
    photos = [np.asarray(Image.open(os.path.join(root, n)).convert("RGB")) for n in PHOTOS if os.path.exists(os.path.join(root, n))]
    rng = np.random.default_rng((1, shard))
    with tarfile.open(f"{folder}/{shard:05d}.tar", "w") as tar:
        for i in range(begin, end):
            long = int(short * (1, 4 / 3, 3 / 2)[i % 3])
            out = io.BytesIO()
            canvas = collage(photos, rng, *((short, long) if i % 2 else (long, short)))
            Image.fromarray(canvas).save(out, "JPEG", quality=90)
            for end_of_name, data in (("jpg", out.getvalue()), ("txt", f"picture number {i} of a photograph".encode())):
                info = tarfile.TarInfo(f"{i:06d}.{end_of_name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make(folder, short, samples, shards):
    cuts = [samples * k // shards for k in range(shards + 1)]
    with multiprocessing.Pool(min(shards, os.cpu_count())) as pool:
        pool.starmap(make_shard, [(folder, short, k, cuts[k], cuts[k + 1]) for k in range(shards)])


class Loading:
    """One pass over all tars gives samples in the order of their keys, whatever the workers."""

    def __init__(self, folder, workers, size):
        self.folder, self.workers, self.size = folder, workers, size
        self.iterator = None

    def start(self):
        import torch
        import webdataset as wds
        from torchvision.transforms import InterpolationMode, Normalize, ToTensor
        from torchvision.transforms.functional import resized_crop
        boxes = json.load(open(f"{self.folder}/boxes.json"))
        to_tensor = ToTensor()
        normalize = Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        size = [self.size, self.size]

        def transform(sample):
            left, top, w, h = boxes[int(sample["__key__"])]
            image = resized_crop(sample["jpg"].convert("RGB"), top, left, h, w, size, InterpolationMode.BICUBIC, antialias=True)
            return normalize(to_tensor(image)), sample["txt"], int(sample["__key__"])

        tars = sorted(f"{self.folder}/{n}" for n in os.listdir(self.folder) if n.endswith(".tar"))
        data = wds.WebDataset(tars, shardshuffle=False).decode("pil").map(transform).batched(BATCH)
        self.loader = wds.WebLoader(data, batch_size=None, num_workers=self.workers, persistent_workers=True)

    def __iter__(self):
        if not hasattr(self, "loader"):
            self.start()
        self.iterator = iter(self.loader)
        return self.iterator

    def cpu(self):
        """Seconds of this process and its workers."""
        total = time.process_time()
        ticks = os.sysconf("SC_CLK_TCK")
        for w in getattr(getattr(self.loader.pipeline[0], "_iterator", None), "_workers", []):
            fields = open(f"/proc/{w.pid}/stat").read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
        return total


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--make", action="store_true", help="the tars, and nothing else")
    p.add_argument("--folder", required=True)
    p.add_argument("--short", type=int, default=256)
    p.add_argument("--samples", type=int)
    p.add_argument("--shards", type=int, default=os.cpu_count())
    p.add_argument("--size", type=int, default=224)
    a = p.parse_args()
    if not any(n.endswith(".tar") for n in os.listdir(a.folder)):
        make(a.folder, a.short, a.samples or SAMPLES[a.short] * os.cpu_count(), a.shards)
    if a.make:
        return
    import torch
    import torchvision  # noqa: F401: not there is said before the arm is ready
    import webdataset  # noqa: F401
    from arm import Server
    torch.set_num_threads(1)
    loading = Loading(a.folder, os.cpu_count(), a.size)
    server = Server(a.serve)
    for command in server.commands():
        if command[0] == "pixels":  # pixels COUNT FILE: the first samples, f32
            found = {}
            for images, _, keys in loading:
                found.update({int(k): image for k, image in zip(keys, images) if int(k) < int(command[1])})
            with open(command[2], "wb") as f:
                for k in range(int(command[1])):
                    f.write(found[k].contiguous().numpy().tobytes())
            server.answer({"ok": True})
            continue
        sums, cpu = [], None
        begin = time.perf_counter()
        for _ in range(int(command[0])):
            n = 0
            iterator = iter(loading)
            cpu = cpu or loading.cpu()
            for images, _, keys in iterator:
                n += len(keys)
            sums.append(float(n))
        ms = 1e3 * (time.perf_counter() - begin)
        server.answer({"ms": ms, "cpu_ms": 1e3 * (loading.cpu() - cpu), "losses": sums})


main()
