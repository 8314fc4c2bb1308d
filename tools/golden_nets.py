#!/usr/bin/env python3
"""Golden tensors of small random nets, computed by diffusers and transformers on the CPU in float32.

    python tools/golden_nets.py [--out tests/golden] [CASE ...]

Needs torch, diffusers, transformers and safetensors from PyPI; downloads nothing. The committed files were made with
torch 2.15, diffusers 0.42.1 and transformers 5.23 or 5.24. What each folder holds is written in tests/golden/README.md.

Every parameter is rounded to float16 before the run and stored as float16, so the numbers are exact for a reader
that widens to float32, and the files stay small. Vectors (norms, biases) are disturbed first: with weight 1 and bias 0
a forgotten norm weight would not be seen.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import torch
import transformers
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
torch.set_num_threads(1)


def normal(*shape, seed):
    """Standard normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settle(model, matrix_gain=1.0):
    """Disturb vectors, scale matrices, and make every parameter exact in float16."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(matrix_gain)
            parameter.copy_(parameter.half().float())
    return model.eval()


def half_state(model):
    return {name: value.half().contiguous().clone() for name, value in model.state_dict().items()}


def write(folder, config, weights, golden, names=("weights.safetensors", "io.safetensors")):
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")
    save_file(weights, f"{folder}/{names[0]}", metadata={"format": "pt"})
    save_file({name: value.detach().contiguous().clone() for name, value in golden.items()}, f"{folder}/{names[1]}")
    size = sum(os.path.getsize(f"{folder}/{name}") for name in (*names, "config.json"))
    assert size < 1_000_000, f"{folder}: {size} bytes, a case should stay below 1 MB"
    print(f"{os.path.basename(folder):16} {sum(v.numel() for v in weights.values()):8} parameters {size:8} bytes")


def public(config):
    """The part of a diffusers configuration that is written to disk."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


# ---------------------------------------------------------------- diffusion UNets and the VAE
UNET_TAPS = (
    "time_embedding", "conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "down_blocks.0.downsamplers.0",
    "down_blocks.1.attentions.1.transformer_blocks.0", "down_blocks.2.resnets.1", "mid_block.attentions.0", "mid_block",
    "up_blocks.0.resnets.0", "up_blocks.0.upsamplers.0", "up_blocks.1.attentions.2", "up_blocks.2", "conv_norm_out",
)
VAE_TAPS = ("decoder.conv_in", "decoder.mid_block.attentions.0", "decoder.mid_block", "decoder.up_blocks.0",
            "decoder.up_blocks.1.resnets.0", "decoder.up_blocks.2", "encoder.down_blocks.0", "encoder.mid_block")


def tapped(model, names, run):
    """Run the model and keep the outputs of the named modules as `tap.NAME` (channels first, as torch has them)."""
    taps, modules = {}, dict(model.named_modules())

    def keep(name):
        def hook(_module, _inputs, output):
            taps[f"tap.{name}"] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        result = run()
    for hook in hooks:
        hook.remove()
    assert len(taps) == len(names)
    return result, taps


SD15 = dict(sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(16, 16, 24),
            norm_num_groups=8, cross_attention_dim=24, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
SDXL_TAPS = ("time_embedding", "add_embedding", "down_blocks.0", "down_blocks.1.attentions.0.transformer_blocks.1",
             "down_blocks.2.attentions.0", "mid_block.attentions.0.transformer_blocks.2", "mid_block",
             "up_blocks.0.attentions.1", "up_blocks.1.upsamplers.0", "up_blocks.2", "conv_norm_out")
SDXL = dict(layers_per_block=1, attention_head_dim=(2, 4, 3), use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 3),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20)
LCM_TAPS = ("time_embedding", "conv_in", "down_blocks.0.resnets.0", "mid_block", "up_blocks.1")
LCM = dict(in_channels=9, layers_per_block=1, block_out_channels=(16, 24), time_cond_proj_dim=16,
           down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
SSD_TAPS = ("down_blocks.0.attentions.0", "down_blocks.1", "mid_block", "up_blocks.0.attentions.0", "up_blocks.1")
SSD = dict(layers_per_block=1, block_out_channels=(16, 24), use_linear_projection=True, mid_block_type="UNetMidBlock2D",
           transformer_layers_per_block=[[2], [1]], reverse_transformer_layers_per_block=[[1, 2], [2, 1]],
           down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)


def conditions(config):
    """What this UNet takes besides latents, step and prompt: tensors of the case and arguments of the model."""
    tensors, arguments = {}, {}
    if config.get("addition_embed_type"):
        sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024], [512, 768, 16, 8, 640, 768.0]])
        tensors = {"text_embeds": normal(2, 20, seed=3), "time_ids": sizes}
        arguments = {"added_cond_kwargs": dict(tensors)}
    if config.get("time_cond_proj_dim"):
        scale = torch.tensor([7.5, 1.3])
        embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        arguments["timestep_cond"] = embed(None, scale - 1, config["time_cond_proj_dim"])
        tensors |= {"guidance_scale": scale, "timestep_cond": arguments["timestep_cond"]}
    return tensors, arguments


def unet(folder, taps=UNET_TAPS, **changes):
    """SD 1.5's pattern of blocks, narrow, on latents that are not square, with two different timesteps in the batch."""
    torch.manual_seed(0)
    model = settle(diffusers.UNet2DConditionModel(**{**SD15, **changes}))
    sample = normal(2, model.config.in_channels, 8, 12, seed=1)
    timestep, context = torch.tensor([981, 1]), normal(2, 77, 24, seed=2)
    more, arguments = conditions(model.config)
    out, taps = tapped(model, taps, lambda: model(sample, timestep, context, **arguments).sample)
    write(folder, public(model.config), half_state(model),
          {"sample": sample, "timestep": timestep, "encoder_hidden_states": context, **more, "out": out, **taps})


CONTROL_TAPS = ("time_embedding", "down_blocks.0.attentions.1", "down_blocks.1", "mid_block")


def controlnet(folder):
    """A ControlNet for `unet_sd15`: `down.0` … and `mid` at a scale of 0.8, and `unet_out`, what that UNet makes of
    them. Its zero convolutions are not zero, and one picture serves both items of the batch."""
    torch.manual_seed(1)
    model = settle(diffusers.ControlNetModel(
        in_channels=4, layers_per_block=2, block_out_channels=(16, 16, 24), norm_num_groups=8, cross_attention_dim=24,
        attention_head_dim=2, conditioning_embedding_out_channels=(8, 12, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")))
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_((0.2 * normal(*parameter.shape, seed=seed)).half().float())
    torch.manual_seed(0)
    net = settle(diffusers.UNet2DConditionModel(**SD15))
    sample, timestep, context = normal(2, 4, 8, 12, seed=1), torch.tensor([981, 1]), normal(2, 77, 24, seed=2)
    cond, scale = normal(1, 3, 32, 48, seed=8).sigmoid(), torch.tensor([0.8])
    (down, mid), taps = tapped(model, CONTROL_TAPS, lambda: model(
        sample, timestep, context, cond, conditioning_scale=scale.item(), return_dict=False))
    with torch.no_grad():
        out = net(sample, timestep, context, down_block_additional_residuals=down, mid_block_additional_residual=mid)
    write(folder, public(model.config), half_state(model),
          {"sample": sample, "timestep": timestep, "encoder_hidden_states": context, "cond": cond,
           "conditioning_scale": scale, "mid": mid, **{f"down.{i}": value for i, value in enumerate(down)}, **taps,
           "unet_out": out.sample})


UNET2D_TAPS = ("time_embedding", "down_blocks.0.downsamplers.0", "down_blocks.1.attentions.0", "mid_block.attentions.0",
               "mid_block", "up_blocks.0.attentions.1", "up_blocks.1")


def unet2d(folder, **changes):
    """UNet2DModel as the DDPM checkpoints of the Hub have it: no padding before the picture, sines first."""
    torch.manual_seed(0)
    config = dict(sample_size=8, layers_per_block=1, block_out_channels=(16, 24), norm_num_groups=8,
                  attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                  up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    model = settle(diffusers.UNet2DModel(**{**config, **changes}))
    sample, timestep = normal(2, 3, 8, 12, seed=1), torch.tensor([981, 1])
    out, taps = tapped(model, UNET2D_TAPS, lambda: model(sample, timestep).sample)
    write(folder, public(model.config), half_state(model),
          {"sample": sample, "timestep": timestep, "out": out, **taps})


def vae_kl(folder):
    """AutoencoderKL, both halves: `image` → `mean`, `logvar`; `z` → `decoded` (no scaling factor applied)."""
    torch.manual_seed(0)
    model = settle(diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 24, 32), layers_per_block=2,
        norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3))
    image, z = normal(1, 3, 24, 32, seed=1).clamp(-1, 1), normal(1, 4, 6, 8, seed=5)
    (posterior, decoded), taps = tapped(model, VAE_TAPS, lambda: (model.encode(image).latent_dist, model.decode(z).sample))
    write(folder, public(model.config), half_state(model),
          {"image": image, "mean": posterior.mean, "logvar": posterior.logvar, "z": z, "decoded": decoded, **taps})


# ---------------------------------------------------------------- text encoders
def clip(folder, activation, pad, prefix, projected=False, old_eos=False):
    """CLIP text model. With `prefix` the names are those of published Stable Diffusion checkpoints (`text_model.` and
    the `position_ids` buffer); without it those that transformers 5 writes. `projected` adds SDXL's projection;
    `old_eos` the end token 2 of files from before transformers 4.30, whose pooled state is that of the highest id."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act=activation, projection_dim=32, bos_token_id=298,
        eos_token_id=2 if old_eos else 299, pad_token_id=299 if pad is None else pad)
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    model = settle(kind(config), matrix_gain=2.0)
    ids = torch.randint(1, 298, (2, 77), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = 298
    for row, end in ((0, 9), (1, 40)):
        ids[row, end] = 299
        ids[row, end + 1:] = 299 if pad is None else pad
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
    weights = half_state(model)
    if prefix:
        if not projected:
            weights = {f"text_model.{name}": value for name, value in weights.items()}
        weights["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    kept = {"input_ids": ids.int(), "last_hidden_state": out.last_hidden_state, "penultimate": out.hidden_states[-2]}
    kept |= {"text_embeds": out.text_embeds} if projected else {"pooled": out.pooler_output}
    if projected:
        with torch.no_grad():
            kept["skipped"] = model.text_model.final_layer_norm(out.hidden_states[-2])
    settings = json.loads(config.to_json_string())
    settings["architectures"] = [kind.__name__]
    write(folder, settings, weights, kept)


# ---------------------------------------------------------------- language models
def hub_rope(settings):
    """Rewrite `rope_parameters` (transformers 5) as the `rope_theta` and `rope_scaling` of the files on the Hub."""
    rope = settings.pop("rope_parameters")
    settings["rope_theta"] = rope.pop("rope_theta")
    kind = rope.get("rope_type", "default")
    settings["rope_scaling"] = None if kind == "default" else rope
    return settings


def llama(folder, tokens=24, tied=False, rope=None, hub_names=False, **changes):
    """Llama with grouped-query attention; the logits of all positions, checked once through the key/value cache."""
    torch.manual_seed(1234)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=160, max_position_embeddings=128, tie_word_embeddings=tied,
        rope_parameters=rope or dict(rope_type="default", rope_theta=10000.0), **changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    model = settle(model, matrix_gain=5.0)  # at the default size attention is nearly uniform and hides a wrong angle
    ids = torch.randint(3, 320, (1, tokens), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        half = tokens // 2
        first = model(ids[:, :half], use_cache=True)
        second = model(ids[:, half:], past_key_values=first.past_key_values, use_cache=True)
    logits = out.logits[0]
    cached = torch.cat([first.logits[0], second.logits[0]])
    assert (cached - logits).abs().max() < 1e-4 * logits.abs().max(), "cached and full logits differ"
    weights = half_state(model)
    if tied:
        weights.pop("lm_head.weight", None)
    settings = json.loads(config.to_json_string())
    settings["architectures"] = ["LlamaForCausalLM"]
    write(folder, hub_rope(settings) if hub_names else settings, weights,
          {"input_ids": ids[0].int(), "logits": logits, "hidden.1": out.hidden_states[1][0]},
          names=("model.safetensors", "golden.safetensors"))


# head_dim 32 puts one frequency into each of llama3's three bands: kept, blended, divided by the factor.
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
CASES = {
    "unet_sd15": unet,
    "unet_sd21": lambda folder: unet(folder, use_linear_projection=True, attention_head_dim=(2, 4, 3),
                                     upcast_attention=True),
    "unet_sdxl": lambda folder: unet(folder, SDXL_TAPS, **SDXL),
    "unet_lcm": lambda folder: unet(folder, LCM_TAPS, **LCM),
    "unet_ssd": lambda folder: unet(folder, SSD_TAPS, **SSD),
    "controlnet": controlnet,
    "unet2d": unet2d,
    "unet2d_ddpm": lambda folder: unet2d(folder, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
                                         attention_head_dim=None, norm_eps=1e-6, attn_norm_num_groups=4),
    "vae_kl": vae_kl,
    "clip_l": lambda folder: clip(folder, "quick_gelu", None, prefix=False),
    "clip_l_prefix": lambda folder: clip(folder, "quick_gelu", None, prefix=True),
    "clip_h": lambda folder: clip(folder, "gelu", 0, prefix=True),
    "clip_g": lambda folder: clip(folder, "gelu", 0, prefix=True, projected=True, old_eos=True),
    "llama": llama,
    "llama_tied": lambda folder: llama(folder, tied=True, hub_names=True, rms_norm_eps=1e-5,
                                       rope=dict(rope_type="default", rope_theta=50000.0)),
    "llama3rope": lambda folder: llama(folder, tokens=48, rope=LLAMA3, hub_names=True, head_dim=32),
}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {' '.join(CASES)}")
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden"))
    options = arguments.parse_args()
    for case in options.cases or CASES:
        CASES[case](os.path.join(options.out, case))
