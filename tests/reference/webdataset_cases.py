"""Tars of odd shape and how the Python package `webdataset` groups them: webdataset/*.tar, webdataset/samples.json.

python3 tests/reference/webdataset_cases.py  (needs webdataset; written with 1.0.2)
"""
import io
import json
import os
import tarfile
import zlib

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "webdataset")
LONG = "a-folder-with-a-long-name/" * 6 + "picture"  # 163 characters: prefix, pax or GNU name
NAMES = [
    "0001.jpg", "0001.txt", "0001.json", "a/0002.JPG", "a/0002.txt", "a.b/0003.x.png", "a.b/0003.png", "a.b/0003.txt",
    "./0004.png", "./0004.cls", "__meta__/x.txt", "__meta__", "noextension", "dir/also-none", "0001.jpg", "0001.txt",
    "üñï/тест.webp", "üñï/тест.txt", LONG + ".jpg", LONG + ".txt", "last.jpg", "last.txt"]


def content(i, name):
    return (f"{i} {name} " * (1 + 7 * (i % 5))).encode()


def make(path, form):
    with tarfile.open(path, "w", format=form) as tar:
        for i, name in enumerate(NAMES):
            data = content(i, name)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            if i == 3:  # what is no file stands between
                for kind, other in ((tarfile.DIRTYPE, "a"), (tarfile.SYMTYPE, "a/link.jpg"), (tarfile.FIFOTYPE, "pipe.jpg")):
                    extra = tarfile.TarInfo(other)
                    extra.type = kind
                    extra.linkname = "0001.jpg" if kind == tarfile.SYMTYPE else ""
                    tar.addfile(extra)


os.makedirs(HERE, exist_ok=True)
samples = {}
for name, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
    path = os.path.join(HERE, name + ".tar")
    make(path, form)
    with open(path, "rb") as stream:
        groups = group_by_keys(tar_file_expander([{"url": path, "stream": stream}]))
        samples[name] = [[g["__key__"], {k: [len(v), zlib.crc32(v)]
                                         for k, v in g.items() if not k.startswith("__")}] for g in groups]
with open(os.path.join(HERE, "samples.json"), "w", encoding="utf-8") as out:
    json.dump(samples, out, ensure_ascii=False, indent=0, sort_keys=True)
    out.write("\n")
print(webdataset.__version__, {k: len(v) for k, v in samples.items()})
