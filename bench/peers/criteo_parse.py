"""Peer arms of bench criteo_parse, one thread: what others do with Criteo's lines.

pyarrow: pyarrow.csv alone, categories as the strings they are. pyarrow_arrays: from there to the arrays a model needs
(blanks 0, logs, words to numbers modulo). reference_loop: as facebookresearch/dlrm's data_utils.py works, line by line in
Python with blanks set to zero, int(word, 16) % modulo and a dictionary of what was seen, without its progress line."""
import argparse

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from arm import Server

DENSE, TABLES, MODULO = 13, 26, 10000000
INTEGERS, WORDS = [f"I{k}" for k in range(DENSE)], [f"C{k}" for k in range(TABLES)]
HEX = np.zeros(256, np.uint32)
for digit in b"0123456789abcdef":
    HEX[digit] = int(chr(digit), 16)


def read(path):
    types = {"label": pa.int8(), **{n: pa.int32() for n in INTEGERS}, **{n: pa.string() for n in WORDS}}
    return pa.csv.read_csv(
        path, read_options=pa.csv.ReadOptions(use_threads=False, column_names=["label"] + INTEGERS + WORDS),
        parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pa.csv.ConvertOptions(column_types=types))


def arrays(path):
    table = read(path)
    dense = np.stack([np.log1p(np.maximum(pc.fill_null(table[n], 0).to_numpy(), 0).astype(np.float32)) for n in INTEGERS], 1)
    words = np.empty((table.num_rows, TABLES), np.uint32)
    for k, name in enumerate(WORDS):
        padded = pc.utf8_lpad(table[name], width=8, padding="0").combine_chunks()
        digits = np.frombuffer(padded.buffers()[2], np.uint8, 8 * len(padded), padded.offset).reshape(-1, 8)
        value = np.zeros(len(digits), np.uint32)
        for d in range(8):
            value = value << 4 | HEX[digits[:, d]]
        words[:, k] = value % MODULO
    return table["label"].to_numpy(), dense, words


def loop(path, lines):
    label, dense = np.zeros(lines, np.int32), np.zeros((lines, DENSE), np.int32)
    words, seen = np.zeros((lines, TABLES), np.int32), [{} for _ in range(TABLES)]
    with open(path) as f:
        for i, line in enumerate(f):
            columns = [c if c not in ("", "\n") else "0" for c in line.split("\t")]
            label[i] = np.int32(columns[0])
            dense[i] = np.array(columns[1:14], dtype=np.int32)
            words[i] = np.array([int(c, 16) % MODULO for c in columns[14:]], dtype=np.int32)
            for k in range(TABLES):
                seen[k][words[i][k]] = 1
    return label, np.log1p(np.maximum(dense, 0).astype(np.float32)), words


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--file")
    p.add_argument("--arm", choices=["pyarrow", "pyarrow_arrays", "reference_loop"])
    a = p.parse_args()
    pa.set_cpu_count(1)
    lines = sum(1 for _ in open(a.file))
    step = {"pyarrow": lambda: read(a.file).num_rows, "pyarrow_arrays": lambda: len(arrays(a.file)[0]),
            "reference_loop": lambda: len(loop(a.file, lines)[0])}[a.arm]
    Server(a.serve).run(lambda: float(step()))


main()
