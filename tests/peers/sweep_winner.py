"""PEFT on what a sweep left: MODEL (folder of transformers), ADAPTER, IDS and LOGITS (safetensors of `trireme logits`).
Prints the largest difference of logits; exit 1 above 1e-4, or where the adapter does nothing."""
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

model, adapter, ids_file, ours_file = sys.argv[1:]
ids, ours = load_file(ids_file)["ids"], load_file(ours_file)["logits"]
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    plain = base(input_ids=ids).logits
    theirs = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits
difference = float((theirs - ours).abs().max())
print("adapter moves logits by %.2f; PEFT and trireme differ by %.1e" % (float((theirs - plain).abs().max()), difference))
sys.exit(not (difference < 1e-4 and (theirs - plain).abs().max() > 1e-2))
