"""Vectors for the byte-level BPE and the chat templates: tests/reference/bpe_vectors.json, read by tests/unit/bpe_test.cpp.

    python make_tokenizer_vectors.py bpe_vectors.json
    python make_tokenizer_vectors.py many.json --cases 20000; TRIREME_BPE_CASES=many.json ctest -R bpe

Trains a small tokenizer of each family on the texts of this repository with the package `tokenizers`, encodes Unicode
strings with it, and lets transformers' apply_chat_template encode conversations. Templates that belong to others
(Qwen2.5, Qwen3, Llama-3.1) are read from the package trl.
"""
import argparse
import json
import os
import random
import tempfile
import unicodedata

import transformers
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = ["the ", " planning", "ing", "'s", "'S", "'LL", "'\u017f", "don't", " 123", "4567", "\n", "\n\n  ", "\r\n", "  ",
         "\t", "\u00a0", "\u3000", "\u0085", "\u180e", "\u200b", "...", "!!", "--", " (x)", "<|im_end", "<0x41>"]
HARD = ["<|endoftext|>", "<|im_start|>", "<|eot_id|>", "<|begin_of_text|>", "new tok", "  new tok ", "cafe\u0301",
        "caf\u00e9", "<tool>  ", "\u1e9b\u0323", "a\u0328\u0301", "\u1100\u1161\u11a8", "<\u0338", "\u2126", "\u0958"]
QWEN2, LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
                 r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" for digits in ("", "{1,3}"))


def corpus():
    texts = []
    for folder, _, names in os.walk(os.path.join(HERE, "..", "..", "docs")):
        texts += [open(os.path.join(folder, n), encoding="utf-8").read() for n in sorted(names) if n.endswith(".md")]
    return texts + ["Größe naïve 東京 привет мир ελληνικά עברית हिन्दी 한국어 " * 20]


def train(family):
    t = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    if family == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.post_processor = processors.ByteLevel(trim_offsets=False)
    elif family == "gpt2_prefix":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        if family == "qwen2":
            t.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2 if family == "qwen2" else LLAMA3), "isolated")
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    # GPT-2 with a prefix lacks some bytes: what no word holds is left out of the ids.
    alphabet = [] if family == "gpt2_prefix" else pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    if family == "gpt2":
        t.add_special_tokens(["<|endoftext|>"])
        t.add_tokens([AddedToken("new tok", lstrip=True, rstrip=True), "caf\u00e9"])
    elif family == "qwen2":
        t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        t.add_tokens([AddedToken("cafe\u0301", normalized=True), AddedToken("<tool>", normalized=False, rstrip=True)])
    elif family == "llama3":
        t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                              "<|eot_id|>"])
        bos = "<|begin_of_text|>"
        template = processors.TemplateProcessing(single=bos + " $A", pair=f"{bos} $A {bos} $B:1",
                                                 special_tokens=[(bos, t.token_to_id(bos))])
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return t


def character(r):
    while True:
        c = r.choice([r.randrange(32, 127), r.randrange(0xA0, 0x600), r.randrange(0x300, 0x370), r.randrange(0x600, 0x3000),
                      r.randrange(0x3000, 0xD800), r.randrange(0xE000, 0x10000), r.randrange(0x10000, 0x20000)])
        # The package's NFC knows the combining classes of Unicode 9, ours those of 14.
        if unicodedata.category(chr(c)) != "Cn" and (c < 0x700 or not unicodedata.combining(chr(c))):
            return chr(c)


def text(r):
    return "".join(r.choice(WORDS) if p < 0.35 else r.choice(HARD) if p < 0.45 else character(r)
                   for p in (r.random() for _ in range(r.randrange(1, 25))))


def cases(t, count):
    r = random.Random(15)
    texts = WORDS + HARD + ["", " ", " leading", "trailing ", "x" * 100] + [text(r) for _ in range(count)]
    return [[s, t.encode(s).ids, t.decode(t.encode(s).ids), t.encode(s, add_special_tokens=False).ids] for s in texts]


TALKS = [
    [("user", "How many?"), ("assistant", "12 + 7 = 19\nAnswer: 19")],
    [("system", "Be brief. "), ("user", "  2 + 2?\n"), ("assistant", " 4 "), ("user", "And 3 more?"), ("assistant", "7")],
    [("user", "cafe\u0301 <|im_start|>\u0338?"), ("assistant", "\u0301odd\u3000"), ("system", "late"), ("user", "x")],
    [("user", "Think."), ("assistant", "<think>\nhm\n</think>\n\nyes"), ("user", "again"), ("assistant", "no")],
]
# With marks of what the assistant generates: its contents and the mark that ends them.
OWN = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
              "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
              "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
              "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
              "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}


def chats(t, family, marks):
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=t, **marks)
    out = []
    for name in {"qwen2": ["chatml", "qwen2_5", "qwen3"], "llama3": ["llama3", "llama3_1"]}.get(family, []):
        jinja = OWN.get(name)
        if jinja is None:
            jinja = open(os.path.join(os.path.dirname(trl.__file__), "chat_templates", name + ".jinja")).read()
        for talk in TALKS:
            messages = [{"role": role, "content": content} for role, content in talk]
            made = fast.apply_chat_template(messages, chat_template=jinja, tokenize=True, return_dict=True,
                                            return_assistant_tokens_mask=name in OWN)
            prompt = fast.apply_chat_template(messages[:-1], chat_template=jinja, tokenize=True, return_dict=True,
                                              add_generation_prompt=True)["input_ids"]
            out.append({"template": name, "messages": talk, "ids": made["input_ids"], "prompt": prompt,
                        "mask": made.get("assistant_masks")})
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--cases", type=int, default=60)
    o = parser.parse_args()
    families = {"gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
                "gpt2_prefix": {},
                "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
                "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}}
    layouts = []
    for family, marks in families.items():
        t = train(family)
        with tempfile.TemporaryDirectory() as folder:
            t.save(os.path.join(folder, "tokenizer.json"))
            saved = json.load(open(os.path.join(folder, "tokenizer.json"), encoding="utf-8"))
        layouts.append({"family": family, "tokenizer": saved, "config": marks, "cases": cases(t, o.cases),
                        "chats": chats(t, family, marks)})
    with open(o.out, "w", encoding="utf-8") as f:
        json.dump(layouts, f, ensure_ascii=False, separators=(",", ":"))


main()
