"""Cases for tests/unit/tokenizer_test.cpp from the real open_clip tokenizer.

    python3 -m venv /tmp/clip && /tmp/clip/bin/pip install open_clip_torch==3.3.0
    /tmp/clip/bin/python tests/reference/tokenizer_cases.py CASES.jsonl [COUNT] [MERGES.txt.gz]
    TRIREME_TOKENIZER_CASES=CASES.jsonl ctest -R tokenizer

One JSON object a line: {"text", "ids"}; the first line is {"merges": path}. Strings are drawn from the characters that
Unicode assigns. Those whose encoding ftfy would repair ("Ã©" to "é", which Trireme leaves alone) are drawn again and
counted on stderr.
"""
import json
import random
import sys
import unicodedata

import ftfy
import open_clip.tokenizer as oct

ASSIGNED = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
WORDS = ("a photo of the crow's nest isn't we'll THE Straße ΣΊΣΥΦΟΣ İstanbul 1,234.5 naïve cafe\u0301 ﬁne &amp; &lt;b&gt; "
         "&eacute &eacute; &EACUTE; &#233; &#x1F600; &notit; &amp;amp; “quoted” ‘single’ ＦＵＬＬ ｶﾞ don’t I'VE you'RE it'S "
         "<start_of_text> <end_of_text> \r\n \u2028 \x85 \x1b[31mred\x1b[0m 한국어 각 日本語 ไทย हिन्दी 👩‍👩‍👧 🇫🇷 e\u0301\u0323 x</w>y "
         "http://example.com/?a=1&b=2 #tag @name 3rd 50% $9.99 C++ ... --- ___ (c) ½ ² Ⅷ ⓐ").split(" ")


def text(rng):
    kind = rng.random()
    if kind < 0.3:  # every assigned character
        return "".join(chr(rng.choice(ASSIGNED)) for _ in range(rng.randint(1, 24)))
    if kind < 0.5:  # one block with spaces and ASCII
        start = rng.choice(ASSIGNED)
        pool = [c for c in range(start, start + 200) if unicodedata.category(chr(min(c, 0x10FFFF))) not in ("Cn", "Cs", "Co")]
        return "".join(chr(rng.choice(pool)) if rng.random() < 0.7 else chr(rng.randint(32, 126)) for _ in range(rng.randint(1, 40)))
    if kind < 0.7:
        return "".join(chr(rng.randint(0, 0x7F)) for _ in range(rng.randint(0, 60)))
    if kind < 0.8:
        return "".join(chr(rng.randint(0x20, 0x24F)) for _ in range(rng.randint(1, 12)))
    pieces = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
    return rng.choice(["", " ", "  ", "\t", "\u00a0", "\n"]).join(pieces) if rng.random() < 0.3 else " ".join(pieces)


def repaired(t):
    plain = ftfy.fix_text(t, fix_encoding=False)
    return ftfy.fix_text(t) != plain


def main(path, count=10000, merges=None):
    rng = random.Random(20240607)
    merges = merges or oct.default_bpe()
    tokenizer = oct.SimpleTokenizer(merges)
    again = 0
    with open(path, "w", encoding="utf-8") as f:
        f.write(json.dumps({"merges": merges}) + "\n")
        for i in range(int(count)):
            t = WORDS[i] if int(count) < 100 and i < len(WORDS) else text(rng)
            while repaired(t):
                again += 1
                t = text(rng)
            f.write(json.dumps({"text": t, "ids": tokenizer.encode(t)}) + "\n")
    print("drawn again for ftfy's repair of encodings: %d" % again, file=sys.stderr)


main(*sys.argv[1:])
