"""transformers and PEFT read what Trireme wrote: ROOT/FAMILY/{model,adapter,merged} and ours.safetensors (ids, base,
adapted). Prints the largest difference of logits for each family; exit 1 above 1e-4."""
import os, sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


root, worst = sys.argv[1], 0.0
for family in sorted(os.listdir(root)):
    at = lambda name: os.path.join(root, family, name)
    ours = load_file(at("ours.safetensors"))
    base = logits(load(at("model")), ours["ids"])
    adapted = logits(PeftModel.from_pretrained(load(at("model")), at("adapter")), ours["ids"])
    merged = logits(load(at("merged")), ours["ids"])
    assert (base - adapted).abs().max() > 1e-2, "the adapter does nothing"
    found = [float((a - b).abs().max()) for a, b in
             ((base, ours["base"]), (adapted, ours["adapted"]), (merged, ours["adapted"]))]
    print(family, "base %.1e, adapter %.1e, merged %.1e" % tuple(found))
    worst = max([worst] + [d if d == d else 1.0 for d in found])
sys.exit(worst > 1e-4)
