"""Tiny models and adapters with their logits, by transformers and peft: tests/reference/lm. Seeded; needs both
packages. Weights have 8 significant bits: models are saved as bf16 and computed in f32."""
import json, os, shutil, sys

import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "lm")
size = dict(vocab_size=29, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64)
llama3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
models = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**size, rope_parameters=llama3, tie_word_embeddings=True,
                                                   attention_bias=True, mlp_bias=True, eos_token_id=[2, 3])),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config(**size, tie_word_embeddings=False)),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config(**size, head_dim=12, tie_word_embeddings=True)),
    "mistral": (tf.MistralForCausalLM, tf.MistralConfig(**{**size, "num_hidden_layers": 1}, head_dim=10,
                                                        sliding_window=None)),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(vocab_size=29, n_embd=32, n_inner=40, n_layer=2, n_head=4, n_positions=24,
                                               scale_attn_by_inverse_layer_idx=True)),
}
adapters = {
    "llama": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"],
                  rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 6}, alpha_pattern={"down_proj": 3}),
    "qwen2": dict(r=2, lora_alpha=6, use_rslora=True, target_modules="all-linear"),
    "qwen3": dict(r=3, lora_alpha=6, target_modules=r".*\.1\.self_attn\.(k|o)_proj"),
    "mistral": dict(r=2, lora_alpha=2, target_modules=["gate_proj", "up_proj"]),
    "gpt2": dict(r=3, lora_alpha=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
}


def draw(module, seed):
    """Weights that matter: no ones, no zeros; of 8 significant bits."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            if not p.requires_grad:
                continue
            x = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                x = x * 0.2 + (1 if name.endswith("weight") else 0)
            else:
                x = x * (0.3 if "embed" in name or ".w" in name else 1.2 / 32**0.5)
            p.copy_(x.to(torch.bfloat16).float())


def logits(model, ids):
    model.eval()
    with torch.no_grad():
        return [model(input_ids=row[None]).logits[0] for row in ids]


def main():
    from safetensors.torch import save_file

    shutil.rmtree(out, ignore_errors=True)
    ids = torch.randint(0, 29, (2, 12), generator=torch.Generator().manual_seed(7))
    for name, (make, config) in models.items():
        folder = os.path.join(out, name)
        model = make(config)
        draw(model, 1)
        model.to(torch.bfloat16).save_pretrained(folder)  # exact: 8 bits
        model = make.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for extra in ("generation_config.json",):
            if os.path.exists(os.path.join(folder, extra)):
                os.remove(os.path.join(folder, extra))
        tensors = {"ids": ids, "logits": torch.stack(logits(model, ids))}
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapters[name]))
        draw(tuned, 2)
        tuned.save_pretrained(os.path.join(folder, "adapter"))
        readme = os.path.join(folder, "adapter", "README.md")
        if os.path.exists(readme):
            os.remove(readme)
        path = os.path.join(folder, "adapter", "adapter_config.json")
        values = json.load(open(path))
        values["base_model_name_or_path"] = name
        json.dump(values, open(path, "w"), indent=1, sort_keys=True)
        tensors["adapted"] = torch.stack(logits(tuned, ids))
        tensors["greedy"] = tuned.generate(input_ids=ids[:1, :5], attention_mask=torch.ones(1, 5), max_new_tokens=12,
                                           do_sample=False, eos_token_id=None, pad_token_id=0)[0]
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "logits.safetensors"))


main()
