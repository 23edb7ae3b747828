"""Cases for tests/unit/safetensors_test.cpp: what the real safetensors reader says of mutated files.

    python3 -m venv /tmp/st && /tmp/st/bin/pip install safetensors==0.8.0
    /tmp/st/bin/python tests/reference/safetensors_cases.py CASES.jsonl [COUNT] [SEED]
    TRIREME_SAFETENSORS_CASES=CASES.jsonl ctest -R safetensors

One JSON object a line: {"file": hex, "tensors": [[name, dtype, shape, hex of data], ...]}, or "error" in place of
"tensors" where the reader refuses.
"""
import json
import random
import struct
import sys

from safetensors import deserialize

BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
        "C64": 64, "F64": 64, "I64": 64, "U64": 64}
OURS = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
NUMBERS = ["0", "1", "2", "3", "4", "7", "8", "-1", "-0", "0.0", "1.0", "1e0", "1E400", "01", "4294967296", "2147483647",
           "4611686018427387904", "4611686018427387905", "9223372036854775807", "9223372036854775808",
           "18446744073709551615", "18446744073709551616", "99999999999999999999", "+1", "0x1", "NaN", "null", "true",
           '"4"', "[4]", "{}"]
TOKENS = NUMBERS + ["{", "}", "[", "]", ",", ":", '"', " ", "\n", "\t", "\0", "\x01", "\x7f", "\\", "\\u0000", "\\ud800",
                    "\\ud83d\\ude00", "é", "\ufeff", "/**/", '"dtype"', '"shape"', '"data_offsets"', '"__metadata__"',
                    '"F32"', '"f32"', '"F128"', '"extra":1,', '"extra":{"a":[1]},', '"a":{},', ",,", "[[[[[[", "]]]]]]"]
NAMES = ["a", "b", "layer.0.weight", "", "é", "日本", "\x00", "x" * 70, "__metadata", "dtype", '"', "\\", "🦜"]


def dumps(x):
    return json.dumps(x, ensure_ascii=False, separators=(",", ":"))


def entries(rng):
    """Tensors back to back: [name, dtype, shape, begin, end] as JSON texts, and the bytes of data."""
    at, out = 0, []
    for name in rng.sample(NAMES, rng.randint(0, 4)):
        dtype = rng.choice(OURS if rng.random() < 0.8 else list(BITS))
        shape = [rng.choice([0, 1, 2, 3, 8]) for _ in range(rng.randint(0, 3))]
        bits = BITS[dtype]
        for n in shape:
            bits *= n
        out.append([dumps(name), dumps(dtype), [str(n) for n in shape], str(at), str(at + bits // 8)])
        at += bits // 8
    return out, at


def wrong(rng, out):
    """One fault in the fields, as the historic bugs had."""
    e = rng.choice(out)
    kind = rng.randrange(7)
    if kind == 0:
        e[rng.choice([3, 4])] = rng.choice(NUMBERS)
    elif kind == 1:
        e[2].insert(rng.randint(0, len(e[2])), rng.choice(NUMBERS))
    elif kind == 2 and e[2]:
        e[2][rng.randrange(len(e[2]))] = rng.choice(NUMBERS)
    elif kind == 3:
        e[1] = dumps(rng.choice(list(BITS) + ["f32", "", "F128"]))
    elif kind == 4:  # moved or resized a little
        shift, grow = rng.choice([-4, -1, 0, 1, 4]), rng.choice([-4, -1, 0, 1, 4])
        e[3], e[4] = (str(int(v) + d) if v.isdigit() else v for v, d in zip(e[3:5], (shift, shift + grow)))
    elif kind == 5:  # a product that wraps to something small
        e[2] = rng.choice([["4611686018427387905"], ["4294967296", "4294967296"], ["2147483648", "2147483648", "4"],
                           ["0", "18446744073709551615", "2"], ["18446744073709551615", "2", "0"]])
    else:
        out.insert(rng.randint(0, len(out)), list(rng.choice(out)))


def text(rng, out):
    fields = []
    if rng.random() < 0.3:
        meta = rng.choice(['{}', '{"format":"pt"}', '{"a":"é","b":"\\u0000"}', '{"k":1}', '{"k":"v","k":"w"}', 'null', '[]', '""'])
        fields.append('"__metadata__":' + meta)
    for name, dtype, shape, begin, end in out:
        parts = ['"dtype":' + dtype, '"shape":[' + ",".join(shape) + "]", '"data_offsets":[' + begin + "," + end + "]"]
        if rng.random() < 0.2:
            rng.shuffle(parts)
        if rng.random() < 0.05:
            parts.insert(rng.randint(0, 3), '"extra":' + rng.choice(['1', '-1.5', 'null', '{"a":[]}', '[[]]', '[[[]]]', '"dtype"']))
        if rng.random() < 0.02:
            parts.pop(rng.randrange(len(parts)))
        if rng.random() < 0.02:
            parts.append(rng.choice(parts))
        fields.append(name + ":" + ("{" + ",".join(parts) + "}" if rng.random() < 0.99 else "[" + dtype + ",[" + ",".join(shape) + "],[" + begin + "," + end + "]]"))
    if rng.random() < 0.3:
        rng.shuffle(fields)
    joint = rng.choice([",", ",", ", ", ",\n", "\t,"])
    return ("{" + joint.join(fields) + "}").encode()


def mutate_bytes(rng, b):
    b = bytearray(b)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randint(0, len(b))
        kind = rng.randrange(6)
        if kind == 0 and at < len(b):
            b[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            b[at:at] = rng.choice(TOKENS).encode()
        elif kind == 2:
            del b[at:at + rng.randint(1, 4)]
        elif kind == 3 and at < len(b):
            b[at] = rng.randrange(256)
        elif kind == 4:
            end = min(len(b), at + rng.randint(1, 30))
            to = rng.randint(0, len(b))
            b[to:to] = b[at:end]
        else:  # one number or text for another
            end = at + rng.randint(0, 6)
            b[at:end] = rng.choice(TOKENS).encode()
    return bytes(b)


def case(rng):
    out, size = entries(rng)
    if out and rng.random() < 0.4:
        wrong(rng, out)
    header = text(rng, out)
    if rng.random() < 0.35:
        header = mutate_bytes(rng, header)
    if rng.random() < 0.5:
        header += b" " * (-len(header) % 8)
    if rng.random() < 0.03:
        header = rng.choice([b" ", b"\n", b"\xef\xbb\xbf"]) + header
    if rng.random() < 0.03:
        header += rng.choice([b"\n", b"\t", b"\0", b"}", b"{}", b"\0garbage"])
    length = len(header)
    if rng.random() < 0.04:
        length = rng.choice([0, 1, length - 1, length + 1, length + 8, length + size, 100_000_000, 100_000_001, 2**63, 2**64 - 1, 2**64 - 8])
    if rng.random() < 0.04:
        size = max(0, size + rng.choice([-8, -1, 1, 8]))
    data = bytes(rng.randrange(2) for _ in range(size))
    file = struct.pack("<Q", length % 2**64) + header + data
    return file[:rng.randint(0, len(file))] if rng.random() < 0.02 else file


def main():
    path, count, seed = sys.argv[1], int((sys.argv[2:] or [20000])[0]), int((sys.argv[3:] or [1])[0])
    rng = random.Random(seed)
    accepted = 0
    with open(path, "w") as f:
        for _ in range(count):
            file = case(rng)
            try:
                tensors = [[name, t["dtype"], t["shape"], bytes(t["data"]).hex()] for name, t in deserialize(file)]
                verdict = {"tensors": tensors}
                accepted += 1
            except Exception as e:  # SafetensorError
                verdict = {"error": str(e)}
            f.write(json.dumps({"file": file.hex(), **verdict}) + "\n")
    print(f"{count} cases, {accepted} accepted", file=sys.stderr)


if __name__ == "__main__":
    main()
