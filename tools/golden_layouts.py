"""Names of tensors in single-file checkpoints (ldm, sgm) beside diffusers' names: tests/golden/layouts/*.json.

    python tools/golden_layouts.py

The file's names are made here, from diffusers' ones, by the numbering of ldm's openaimodel.py, model.py and
OpenCLIP's transformer.py. What is written down is what diffusers' own converters (loaders/single_file_utils.py) make
of them: a name that they read otherwise than it was made stops the script. True sizes come from the published
configurations in ../shared/data/configs; nothing is downloaded and no weights of that size are made.

Each list has one line per tensor of the file: [name, shape, diffusers' name] or, of tensors that are taken apart,
[name, shape, name, name, name]. Made with torch 2.15, diffusers 0.42.1, transformers 5.24.
"""
import json
import os
import re
import sys

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils as single

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
OUT = os.path.join(ROOT, "tests/golden/layouts")
CONFIGS = os.path.join(os.environ.get("INKNIB_SHARED", os.path.join(ROOT, "../shared")), "data/configs")

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
              "self_attn.out_proj": "attn.out_proj"}


def ldm_unet(name, config, has_attention):
    """ldm's name of a UNet's tensor. A level is `layers_per_block` resnets and what changes the size."""
    stem, end = name.rsplit(".", 1)
    if stem in UNET:
        return f"{UNET[stem]}.{end}"
    per_level = config["layers_per_block"] + 1
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", stem):
        kind, i, rest = found.groups()
        if kind == "attentions":
            return f"middle_block.1.{rest}.{end}"
        return f"middle_block.{2 * int(i)}.{RESNET[rest]}.{end}"
    way, level, kind, i, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", stem).groups()
    level, i = int(level), int(i)
    if kind == "downsamplers":
        return f"input_blocks.{per_level * (level + 1)}.0.op.{end}"
    if kind == "upsamplers":
        return f"output_blocks.{per_level * (level + 1) - 1}.{2 if has_attention(f'up_blocks.{level}') else 1}.conv.{end}"
    block = f"input_blocks.{1 + per_level * level + i}" if way == "down" else f"output_blocks.{per_level * level + i}"
    if kind == "resnets":
        return f"{block}.0.{RESNET[rest]}.{end}"
    return f"{block}.1.{rest}.{end}"


def ldm_vae(name, levels):
    """ldm's name of an autoencoder's tensor. Its decoder counts levels from the picture."""
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    if "mid_block.attentions.0." in name:
        head, tail = name.split("mid_block.attentions.0.")
        stem, end = tail.rsplit(".", 1)
        return f"{head}mid.attn_1.{ATTENTION[stem]}.{end}"
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    back = lambda found: f"decoder.up.{levels - 1 - int(found.group(1))}.{'block' if found.group(2) == 'resnets' else 'upsample'}"
    name = re.sub(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers\.0)", back, name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def with_prefix(name):
    """transformers 5 leaves `text_model.` out; published files, and diffusers' converters, have it."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def open_clip(state):
    """OpenCLIP's state dict of a text encoder: q, k and v in one matrix, the projection transposed."""
    out = {}
    for name, value in state.items():
        name = with_prefix(name)
        if found := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, stem, end = found.groups()
            place = f"transformer.resblocks.{layer}"
            if stem in CLIP_LAYER:
                out[f"{place}.{CLIP_LAYER[stem]}.{end}"] = value
            elif stem == "self_attn.q_proj":
                parts = [state[k] for k in (_sibling(state, name, p) for p in "qkv")]
                out[f"{place}.attn.in_proj_{end}"] = torch.cat(parts)
        else:
            fixed = {"text_model.embeddings.token_embedding.weight": "token_embedding.weight",
                     "text_model.embeddings.position_embedding.weight": "positional_embedding",
                     "text_model.final_layer_norm.weight": "ln_final.weight",
                     "text_model.final_layer_norm.bias": "ln_final.bias", "text_projection.weight": "text_projection"}
            if name in fixed:
                out[fixed[name]] = value.T if name == "text_projection.weight" else value
    return out


def _sibling(state, name, letter):
    wanted = name.replace("q_proj", f"{letter}_proj")
    return next(k for k in state if with_prefix(k) == wanted)


class Marked:
    """A tensor that remembers, through what the converters do, which tensor of the file and which row it begins at."""

    def __init__(self, data, mark, start=0):
        self.data, self.mark, self.start, self.shape, self.ndim = data, mark, start, data.shape, data.ndim

    def __getitem__(self, index):
        rows = index[0] if isinstance(index, tuple) else index
        start = (rows.start or 0) if isinstance(rows, slice) else 0
        return Marked(self.data[index], self.mark, start)

    def clone(self):
        return self

    def detach(self):
        return self

    def contiguous(self):
        return self

    @property
    def T(self):
        return Marked(self.data.T, self.mark)


def table(file, converted):
    """The file's tensors, each with those that the converter made of it in the order of their rows."""
    lines, made = [], {}
    for name, value in converted.items():
        made.setdefault(value.mark, []).append((value.start, name))
    for name, value in file.items():
        assert name in made, f"the converter has no use for {name}"
        lines.append([name, list(value.shape), *(other for _, other in sorted(made.pop(name)))])
    assert not made, made
    return lines


def marked(state, prefix):
    return {prefix + name: Marked(value, prefix + name) for name, value in state.items()}


def unet(config, prefix="model.diffusion_model."):
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel.from_config(config)
    state, config = model.state_dict(), model.config
    has_attention = lambda place: any(name.startswith(f"{place}.attentions") for name in state)
    # The converters do not know the guidance embedding of latent consistency models.
    plain = {n: v for n, v in state.items() if "cond_proj" not in n}
    file = marked({ldm_unet(name, config, has_attention): value for name, value in plain.items()}, prefix)
    converted = single.convert_ldm_unet_checkpoint(dict(file), config)
    assert set(converted) == set(plain), set(converted) ^ set(plain)
    return table(file, converted)


def vae(config, prefix="first_stage_model."):
    with torch.device("meta"):
        model = diffusers.AutoencoderKL.from_config(config)
    state = model.state_dict()
    file = {}
    for name, value in state.items():
        window = "attentions" in name and value.ndim == 2
        file[ldm_vae(name, len(config["block_out_channels"]))] = value[:, :, None, None] if window else value
    file = marked(file, prefix)
    converted = single.convert_ldm_vae_checkpoint(dict(file), config)
    assert set(converted) == set(state), set(converted) ^ set(state)
    return table(file, converted)


def text(config, prefix, projection):
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    with torch.device("meta"):
        model = kind(transformers.CLIPTextConfig(**config))
    state = {with_prefix(n): v for n, v in model.state_dict().items() if "position_ids" not in n}
    if "transformer." in prefix:
        file = marked(state, prefix)
        converted = single.convert_ldm_clip_checkpoint(dict(file))
    else:
        file = marked(open_clip(state), prefix)
        converted = single.convert_open_clip_checkpoint(model, dict(file), prefix=prefix)
    assert set(map(with_prefix, converted)) == set(state), set(map(with_prefix, converted)) ^ set(state)
    return table(file, converted)


def read(model, part):
    with open(f"{CONFIGS}/{model}/{part}/config.json", encoding="utf-8") as file:
        return json.load(file)


def write(name, lines):
    os.makedirs(OUT, exist_ok=True)
    with open(f"{OUT}/{name}.json", "w", encoding="utf-8") as file:
        rows = (json.dumps(line, separators=(",", ":")) for line in lines)
        file.write("[\n" + ",\n".join(rows) + "\n]\n")
    print(f"{name:12} {len(lines):5} tensors {os.path.getsize(f'{OUT}/{name}.json'):8} bytes")


REFINER = dict(block_out_channels=[384, 768, 1536, 1536], attention_head_dim=[6, 12, 24, 24], cross_attention_dim=1280,
               transformer_layers_per_block=4, projection_class_embeddings_input_dim=2560,
               down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
               up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"])


def golden_config(case):
    with open(f"{ROOT}/tests/golden/{case}/config.json", encoding="utf-8") as file:
        return json.load(file)


def main():
    sd1, sd2, xl = "stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0"
    write("sd1", unet(read(sd1, "unet")) + vae(read(sd1, "vae"))
          + text(read(sd1, "text_encoder"), "cond_stage_model.transformer.", False))
    write("sd2", unet(read(sd2, "unet")) + text(read(sd2, "text_encoder"), "cond_stage_model.model.", False))
    write("sdxl", unet(read(xl, "unet"))
          + text(read(xl, "text_encoder"), "conditioner.embedders.0.transformer.", False)
          + text(read(xl, "text_encoder_2"), "conditioner.embedders.1.model.", True))
    write("refiner", unet({**read(xl, "unet"), **REFINER}))
    # The small models of tests/golden.
    write("small_unet", unet(golden_config("unet_sd15")))
    write("small_sd21", unet(golden_config("unet_sd21")))
    write("small_sdxl", unet(golden_config("unet_sdxl")))
    write("small_lcm", unet(golden_config("unet_lcm")))
    write("small_ssd", unet(golden_config("unet_ssd")))
    write("small_vae", vae(golden_config("vae_kl")))
    write("small_clip", text(golden_config("clip_h"), "cond_stage_model.model.", False))
    write("small_clip_2", text(golden_config("clip_g"), "conditioner.embedders.1.model.", True))


if __name__ == "__main__":
    sys.exit(main())
