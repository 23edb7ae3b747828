"""DPO's loss and gradients of an adapter by trl: tests/reference/lm/llama/dpo.safetensors. Needs trl, transformers, peft.

Pairs of ids on the Llama of make_lm_vectors.py with its adapter, in f64, through DPOTrainer's own loss; the reference is
the model without the adapter. Tensors: ids [2 pairs, T] (chosen first, padded with 0), lengths, prompt (ids that do not
count), beta, loss, and grad.NAME by PEFT's names."""
import os, sys, tempfile

import torch
import transformers as tf
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lm", "llama")
out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "dpo.safetensors")
beta = 0.3
prompt = [3, 5, 2]  # ids of each pair's prompt
chosen, rejected = [9, 12, 7], [11, 8, 7]  # ids of each sample


def trainer_of(model):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(29)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
    rows = Dataset.from_dict({"prompt": ["w4 w5"], "chosen": ["w6"], "rejected": ["w7"]})
    args = DPOConfig(tempfile.mkdtemp(), beta=beta, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False)
    return DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)


def main():
    base = tf.LlamaForCausalLM.from_pretrained(here, dtype=torch.float64, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, os.path.join(here, "adapter"), is_trainable=True).double()
    lengths = chosen + rejected
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    counts = torch.zeros_like(ids)
    draw = torch.Generator().manual_seed(3)
    for pair, n in enumerate(prompt):
        shared = torch.randint(1, 29, (n,), generator=draw)
        for row in (pair, pair + len(prompt)):
            ids[row, :n] = shared
            ids[row, n : lengths[row]] = torch.randint(1, 29, (lengths[row] - n,), generator=draw)
            counts[row, n : lengths[row]] = 1
    attention = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    trainer = trainer_of(model)
    trainer.model.delete_adapter("ref")  # a copy of the adapter as it begins; the reference here is the model without one
    trainer.model.double().eval()
    loss = trainer._compute_loss(trainer.model, {"input_ids": ids, "attention_mask": attention, "completion_mask": counts}, False)
    loss.backward()
    tensors = {"ids": ids, "lengths": torch.tensor(lengths), "prompt": torch.tensor(prompt),
               "beta": torch.tensor([beta], dtype=torch.float64), "loss": loss.detach().reshape(1)}
    for name, p in trainer.model.named_parameters():
        if p.grad is not None:
            tensors["grad." + name.replace(".default", "")] = p.grad
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)
    print(loss.item(), len(tensors))


main()
