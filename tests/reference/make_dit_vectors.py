"""Tiny diffusion transformers of every layout with their outputs, by diffusers: tests/reference/dit. Seeded.

  make_dit_vectors.py [OUT] [--layouts flux,sd3,...] [--seed N] [--heads N] [--head-dim N] [--layers N] [--batch N]
                      [--rows N] [--columns N] [--frames N] [--text N] [--shard BYTES]

OUT/<case>/ is a transformer folder of diffusers (config.json; one safetensors file, or shards with an index), and
OUT/<case>/vectors.safetensors holds, all f32 (B samples; rows, columns, frames count tokens; frames of pictures: 1):
  x [B, C, F, H, W]  latent;  t [B]  sigma in [0, 1];  text [B, M, .];  pooled [B, .], guidance [B], image [B, C', F, H, W],
  image_tokens [B, I, .]  where the layout has them  ->  velocity [B, C, F, H, W]
  velocity_bf16      the same weights and inputs in bf16 (the error bf16 is allowed: 9.1 of the brief's parity rule)
  temb [B, D]        what modulates (Wan: before the SiLU)
  in.image [B, N, D], in.text [B, M, D]           what enters the first block (in.text: not of wan_i2v_clip, for its size)
  out.<block>.image, out.<block>.text             what leaves each block, by its name (transformer_blocks.0, ...)
OUT/schedule.json: sigmas of FlowMatchEuler for static and dynamic shifts.
OUT/{flux,wan}/pipeline.safetensors: embeddings, first noise and final latents (unpacked) of FluxPipeline and WanPipeline
around that transformer; settings in pipeline.json. WanPipeline here starts from the sigmas 1, 1 - 1/n, ..., as FluxPipeline
does: FlowMatchEuler's own default spaces them down to the last of 1000 training steps.
Weights have 8 significant bits: folders are saved as bf16 and computed in f32."""
import argparse, json, os, shutil

import diffusers
import torch
from diffusers import (FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, HunyuanVideoTransformer3DModel,
                       SD3Transformer2DModel, WanPipeline, WanTransformer3DModel)
from safetensors.torch import save_file

here = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser()
parser.add_argument("out", nargs="?", default=os.path.join(here, "dit"))
parser.add_argument("--layouts", default="")
for name, value in dict(seed=1, heads=2, head_dim=16, layers=2, batch=2, rows=3, columns=4, frames=3, text=5, shard=110_000).items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
args = parser.parse_args()
width = args.heads * args.head_dim
side = 2 * (7 * args.head_dim // 32)
axes = (args.head_dim - 2 * side, side, side)  # 16, 56, 56 of FLUX's 128
heads = dict(num_attention_heads=args.heads, attention_head_dim=args.head_dim)


def flux(guidance, layers):
    return FluxTransformer2DModel(in_channels=16, num_layers=layers, num_single_layers=layers, **heads,
                                  joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=guidance,
                                  axes_dims_rope=axes)


def sd3(qk_norm, dual):
    return SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=args.layers, **heads,
                                 joint_attention_dim=24, caption_projection_dim=width, pooled_projection_dim=20,
                                 pos_embed_max_size=2 * max(args.rows, args.columns), qk_norm=qk_norm, dual_attention_layers=dual)


def wan(**more):
    return WanTransformer3DModel(**heads, **{**dict(in_channels=4, out_channels=4), **more}, text_dim=24, freq_dim=32,
                                 ffn_dim=3 * width, num_layers=args.layers)


def hunyuan(**more):
    return HunyuanVideoTransformer3DModel(**{**dict(in_channels=4, out_channels=4), **more}, **heads, num_layers=1,
                                          num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=24,
                                          pooled_projection_dim=20, rope_axes_dim=axes)


cases = {
    "flux": lambda: flux(True, args.layers),
    "flux_schnell": lambda: flux(False, 1),
    "sd3": lambda: sd3(None, ()),
    "sd35": lambda: sd3("rms_norm", (0,)),
    "wan": wan,
    "wan_i2v": lambda: wan(in_channels=12),
    "wan_i2v_clip": lambda: wan(in_channels=12, image_dim=28, added_kv_proj_dim=width),
    "hunyuan_video": hunyuan,
    "hunyuan_video_i2v": lambda: hunyuan(in_channels=9, image_condition_type="latent_concat", guidance_embeds=False),
}


def draw(model, seed):
    """Weights that matter: no ones, no zeros; of 8 significant bits."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                x = x * 0.2 + (1 if name.endswith("weight") else 0)
            elif "table" in name:
                x = x * 0.3
            else:
                x = x / p[0].numel() ** 0.5
            p.copy_(x.to(torch.bfloat16).float())
        for name, b in model.named_buffers():
            if name == "pos_embed.pos_embed":
                b.copy_(b.to(torch.bfloat16).float())


def pack(x):  # [B, C, 1, H, W] -> tokens of 2 x 2 pixels, channel slowest
    b, c, _, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(x, h, w):
    b, _, c = x.shape
    return x.reshape(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 1, h, w)


def ids(rows, columns):
    return torch.tensor([[0, r, c] for r in range(rows) for c in range(columns)], dtype=torch.float32)


def velocity(case, model, v):
    """The forward of diffusers with the inputs v, as its pipelines call it."""
    like = model.proj_out.weight.dtype
    v = {k: x if k in ("t", "guidance") else x.to(like) for k, x in v.items()}
    x, t = v["x"], v["t"]
    if case.startswith("flux"):
        out = model(hidden_states=pack(x), encoder_hidden_states=v["text"], pooled_projections=v["pooled"], timestep=t.to(like),
                    img_ids=ids(args.rows, args.columns), txt_ids=torch.zeros(args.text, 3), guidance=v.get("guidance")).sample
        return unpack(out, *x.shape[3:])
    if case.startswith("sd3"):
        out = model(hidden_states=x[:, :, 0], encoder_hidden_states=v["text"], pooled_projections=v["pooled"], timestep=1000 * t)
        return out.sample[:, :, None]
    x = torch.cat([x, v["image"]], 1) if "image" in v else x
    if case.startswith("wan"):
        return model(hidden_states=x, timestep=1000 * t, encoder_hidden_states=v["text"],
                     encoder_hidden_states_image=v.get("image_tokens")).sample
    return model(hidden_states=x, timestep=1000 * t, encoder_hidden_states=v["text"], pooled_projections=v["pooled"],
                 encoder_attention_mask=torch.ones(args.batch, args.text),
                 guidance=1000 * v["guidance"] if "guidance" in v else None).sample


def inputs(case, model, seed):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g)
    frames = 1 if case.startswith(("flux", "sd3")) else args.frames
    picture = (frames, 2 * args.rows, 2 * args.columns)
    # Wan takes 512 text tokens where picture tokens stand before them: its processor cuts there.
    # 1000 t and 1000 g are exact in bf16: the sinusoids see no rounding that only diffusers' casts would make.
    power = lambda n: 2.0 ** torch.randint(n, (args.batch,), generator=g)
    v = {"x": normal(args.batch, 4, *picture), "t": power(4) / 8,
         "text": normal(args.batch, 512 if case == "wan_i2v_clip" else args.text, 24)}
    if not case.startswith("wan"):
        v["pooled"] = normal(args.batch, 20)
    if getattr(model.config, "guidance_embeds", False):
        v["guidance"] = power(3)
    if not case.startswith(("flux", "sd3")) and model.config.in_channels > 4:
        v["image"] = normal(args.batch, model.config.in_channels - 4, *picture)
    if case == "wan_i2v_clip":
        v["image_tokens"] = normal(args.batch, 6, 28)
    return v


def blocks(model):
    for stem in ("transformer_blocks", "single_transformer_blocks", "blocks"):
        for i, block in enumerate(getattr(model, stem, [])):
            yield f"{stem}.{i}", block


def watch(case, model, seen):
    """Hooks that write what enters the first block and leaves every block into seen."""
    text_first = case.startswith(("flux", "sd3"))  # of the pair a block returns, in diffusers

    def entering(_, positional, named):
        values = [*positional, *(named[k] for k in ("hidden_states", "encoder_hidden_states", "temb") if k in named)]
        seen["in.image"], seen["in.text"] = values[:2]
        if not case.startswith("wan"):
            seen["temb"] = values[2]
        elif values[1].shape[1] > 100:
            del seen["in.text"]  # large, and an input's plain MLP

    def leaving(name):
        def hook(_, __, out):
            if torch.is_tensor(out):
                seen[f"out.{name}.image"] = out
                return
            text, image = out if text_first else (out[1], out[0])
            seen[f"out.{name}.image"] = image
            if text is not None:
                seen[f"out.{name}.text"] = text
        return hook

    for i, (name, block) in enumerate(blocks(model)):
        if i == 0:
            block.register_forward_pre_hook(entering, with_kwargs=True)
        block.register_forward_hook(leaving(name))
    if case.startswith("wan"):
        model.condition_embedder.register_forward_hook(lambda _, __, out: seen.__setitem__("temb", out[0]))


def save(model, folder, shard):
    shutil.rmtree(folder, ignore_errors=True)
    half = type(model).from_config(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    path = os.path.join(folder, "config.json")
    values = json.load(open(path))
    json.dump(values, open(path, "w"), indent=1, sort_keys=True)


def plain(tensors):
    return {k: x.detach().float().contiguous() for k, x in tensors.items()}


def one(case):
    model = cases[case]().eval()
    draw(model, args.seed)
    folder = os.path.join(args.out, case)
    save(model, folder, args.shard)
    v = inputs(case, model, args.seed + 1)
    with torch.no_grad():
        half = type(model).from_pretrained(folder, torch_dtype=torch.bfloat16)
        result = {"velocity_bf16": velocity(case, half, v)}
        seen = {}
        watch(case, model, seen)
        result["velocity"] = velocity(case, model, v)
    save_file(plain({**v, **result, **seen}), os.path.join(folder, "vectors.safetensors"))
    off = (result["velocity"] - result["velocity_bf16"].float()).abs().max() / result["velocity"].std()
    print(f"{case}: {sum(p.numel() for p in model.parameters())} parameters, bf16 off by {off:.4f} std")
    if case in pipelines:
        pipelines[case](model, folder)


def schedule():
    table = []
    for steps in (1, 4, 28):
        for shift in (1.0, 3.0):
            s = FlowMatchEulerDiscreteScheduler(shift=shift)
            s.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
            table.append(dict(steps=steps, shift=shift, sigmas=s.sigmas.tolist()))
        for mu in (0.5, 1.15, 1.8):
            s = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
            s.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=mu)
            table.append(dict(steps=steps, mu=mu, sigmas=s.sigmas.tolist()))
    json.dump(table, open(os.path.join(args.out, "schedule.json"), "w"), indent=0)


def flux_pipeline(model, folder, steps=4, guidance=3.0):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
                                                max_image_seq_len=4096)
    pipe = FluxPipeline(scheduler, None, None, None, None, None, model)
    v = {k: x for k, x in inputs("flux", model, args.seed + 3).items() if k in ("x", "text", "pooled")}
    rows, columns = 2 * args.rows, 2 * args.columns
    out = pipe(prompt_embeds=v["text"], pooled_prompt_embeds=v["pooled"], latents=pack(v["x"]), height=8 * rows, width=8 * columns,
               num_inference_steps=steps, guidance_scale=guidance, output_type="latent").images
    save_pipeline(folder, dict(steps=steps, guidance=guidance, mu_mode="linear", sigmas=scheduler.sigmas.tolist()),
                  dict(prompt_embeds=v["text"], pooled=v["pooled"], noise=v["x"], latents=unpack(out, rows, columns)))


def wan_pipeline(model, folder, steps=4, guidance=4.0, shift=3.0):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda n, device=None: set_timesteps(sigmas=[1 - i / n for i in range(n)], device=device)
    pipe = WanPipeline(None, None, None, scheduler, model)
    v = inputs("wan", model, args.seed + 5)
    negative = torch.randn(v["text"].shape, generator=torch.Generator().manual_seed(args.seed + 6))
    out = pipe(prompt_embeds=v["text"], negative_prompt_embeds=negative, latents=v["x"], height=16 * args.rows,
               width=16 * args.columns, num_frames=4 * args.frames - 3, num_inference_steps=steps, guidance_scale=guidance,
               output_type="latent").frames
    save_pipeline(folder, dict(steps=steps, guidance=guidance, shift=shift, sigmas=scheduler.sigmas.tolist()),
                  dict(prompt_embeds=v["text"], negative_prompt_embeds=negative, noise=v["x"], latents=out))


def save_pipeline(folder, settings, tensors):
    save_file(plain(tensors), os.path.join(folder, "pipeline.safetensors"))
    json.dump(settings, open(os.path.join(folder, "pipeline.json"), "w"), indent=1, sort_keys=True)
    print(f"{os.path.basename(folder)}: pipeline's final latents of std {tensors['latents'].std():.3f}")


pipelines = {"flux": flux_pipeline, "wan": wan_pipeline}

if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(args.seed)
    for case in args.layouts.split(",") if args.layouts else cases:
        one(case)
    if not args.layouts:
        schedule()
