"""Lines of data/text/chat_templates.inc: how chat templates are recognised without holding their text.

    python chat_templates.py chatml=FILE qwen2=FILE ... > data/text/chat_templates.inc

FILE: a Jinja text, or a tokenizer_config.json that holds one.
"""
import json
import sys

table = []
for i in range(256):
    for _ in range(8):
        i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
    table.append(i)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


print("// Made by tests/reference/chat_templates.py: bytes and CRC32C of the Jinja texts that are known.")
for argument in sys.argv[1:]:
    name, path = argument.split("=", 1)
    text = open(path, encoding="utf-8").read()
    if path.endswith(".json"):
        text = json.loads(text)["chat_template"]
    text = text.replace("\\n", "\n").strip(" \n").encode()
    print("{%d, 0x%08X, ChatTemplate::%s}," % (len(text), crc32c(text), name))
