#!/usr/bin/env python3
"""Stable Diffusion checkpoints of true shapes with random weights, to measure speed and memory without a download.

usage: synthetic_sd.py NAME OUTDIR [--configs DIR] [--tokenizer DIR] [--parts unet,vae,text_encoder,text_encoder_2]

NAME: sd15, sd21, sdxl, or small (seconds). Writes a diffusers folder under OUTDIR: model_index.json, the scheduler's
configuration, and config.json and weights (FP16) of each part. Weights are N(0, 1/fan-in), norms 1, biases 0, drawn from
a seed of each tensor's own, so that a part comes out the same alone. Needs numpy; one tensor is in memory at a time.

--configs DIR takes DIR/PART/config.json instead of what is written here. --tokenizer DIR copies that folder; without it
the demo model's, whose tokens are fewer than CLIP's but all valid. What such a model paints is noise: use `inknib bench`."""
import argparse
import json
import math
import os
import shutil
import struct
import zlib

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
CROSS_DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
CROSS_UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
# What differs from the defaults of diffusers' and transformers' classes.
SD15 = dict(
    unet=dict(block_out_channels=[320, 640, 1280, 1280], down_block_types=CROSS_DOWN, up_block_types=CROSS_UP,
        cross_attention_dim=768, attention_head_dim=8, sample_size=64),
    vae=dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, sample_size=512),
    text_encoder=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        hidden_act="quick_gelu", projection_dim=768))
SD21 = dict(
    unet=dict(SD15["unet"], cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True,
        upcast_attention=True, sample_size=96),
    vae=dict(SD15["vae"], sample_size=768),
    text_encoder=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
        hidden_act="gelu", projection_dim=512))
SDXL = dict(
    unet=dict(block_out_channels=[320, 640, 1280],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], transformer_layers_per_block=[1, 2, 10],
        cross_attention_dim=2048, attention_head_dim=[5, 10, 20], use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        sample_size=128),
    vae=dict(SD15["vae"], sample_size=1024, scaling_factor=0.13025, force_upcast=True),
    text_encoder=SD15["text_encoder"],
    text_encoder_2=dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        hidden_act="gelu", projection_dim=1280, architectures=["CLIPTextModelWithProjection"]))
SMALL = dict(
    unet=dict(SD15["unet"], block_out_channels=[64, 128, 128, 128], cross_attention_dim=64, attention_head_dim=2),
    vae=dict(SD15["vae"], block_out_channels=[32, 64, 64, 64]),
    text_encoder=dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        hidden_act="quick_gelu", projection_dim=64))
MODELS = dict(sd15=SD15, sd21=SD21, sdxl=SDXL, small=SMALL)
DEFAULTS = dict(
    unet=dict(_class_name="UNet2DConditionModel", in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=32,
        norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0, transformer_layers_per_block=1, use_linear_projection=False),
    vae=dict(_class_name="AutoencoderKL", in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=32,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4),
    text_encoder=dict(architectures=["CLIPTextModel"], model_type="clip_text_model", vocab_size=49408,
        max_position_embeddings=77, layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2))
DEFAULTS["text_encoder_2"] = DEFAULTS["text_encoder"]
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
    steps_offset=1, set_alpha_to_one=False)
SCHEDULERS = dict(
    sd15=dict(SCHEDULER, _class_name="PNDMScheduler", skip_prk_steps=True),
    sd21=dict(SCHEDULER, _class_name="DDIMScheduler", prediction_type="v_prediction", clip_sample=False),
    sdxl=dict(SCHEDULER, _class_name="EulerDiscreteScheduler", prediction_type="epsilon"))
SCHEDULERS["small"] = SCHEDULERS["sd15"]


def linear(name, n, k, bias=True):
    yield name + ".weight", (n, k)
    if bias:
        yield name + ".bias", (n,)


def conv(name, n, k, size=3):
    yield name + ".weight", (n, k, size, size)
    yield name + ".bias", (n,)


def norm(name, c):
    yield name + ".weight", (c,)
    yield name + ".bias", (c,)


def resnet(at, cin, cout, time=None):
    yield from norm(at + ".norm1", cin)
    yield from conv(at + ".conv1", cout, cin)
    if time:
        yield from linear(at + ".time_emb_proj", cout, time)
    yield from norm(at + ".norm2", cout)
    yield from conv(at + ".conv2", cout, cout)
    if cin != cout:
        yield from conv(at + ".conv_shortcut", cout, cin, 1)


def transformer(at, c, depth, context, flat):
    project = linear if flat else lambda name, n, k: conv(name, n, k, 1)
    yield from norm(at + ".norm", c)
    yield from project(at + ".proj_in", c, c)
    for i in range(depth):
        block = f"{at}.transformer_blocks.{i}"
        for n in (1, 2, 3):
            yield from norm(f"{block}.norm{n}", c)
        for attn, k in (("attn1", c), ("attn2", context)):
            yield from linear(f"{block}.{attn}.to_q", c, c, False)
            yield from linear(f"{block}.{attn}.to_k", c, k, False)
            yield from linear(f"{block}.{attn}.to_v", c, k, False)
            yield from linear(f"{block}.{attn}.to_out.0", c, c)
        yield from linear(block + ".ff.net.0.proj", 8 * c, c)
        yield from linear(block + ".ff.net.2", c, 4 * c)
    yield from project(at + ".proj_out", c, c)


def unet(c):
    channels, layers, time = c["block_out_channels"], c["layers_per_block"], 4 * c["block_out_channels"][0]
    levels, depths = len(channels), c["transformer_layers_per_block"]
    depths = [depths] * levels if isinstance(depths, int) else depths
    attend = lambda at, level: transformer(at, channels[level], depths[level], c["cross_attention_dim"],
        c["use_linear_projection"])
    yield from linear("time_embedding.linear_1", time, channels[0])
    yield from linear("time_embedding.linear_2", time, time)
    if c.get("addition_embed_type") == "text_time":
        yield from linear("add_embedding.linear_1", time, c["projection_class_embeddings_input_dim"])
        yield from linear("add_embedding.linear_2", time, time)
    yield from conv("conv_in", channels[0], c["in_channels"])
    x, skips = channels[0], [channels[0]]
    for i, out in enumerate(channels):
        for j in range(layers):
            yield from resnet(f"down_blocks.{i}.resnets.{j}", x, out, time)
            if "CrossAttn" in c["down_block_types"][i]:
                yield from attend(f"down_blocks.{i}.attentions.{j}", i)
            x = out
            skips.append(x)
        if i < levels - 1:
            yield from conv(f"down_blocks.{i}.downsamplers.0.conv", out, out)
            skips.append(x)
    yield from resnet("mid_block.resnets.0", x, x, time)
    yield from attend("mid_block.attentions.0", levels - 1)
    yield from resnet("mid_block.resnets.1", x, x, time)
    for i in range(levels):
        level = levels - 1 - i
        for j in range(layers + 1):
            yield from resnet(f"up_blocks.{i}.resnets.{j}", x + skips.pop(), channels[level], time)
            if "CrossAttn" in c["up_block_types"][i]:
                yield from attend(f"up_blocks.{i}.attentions.{j}", level)
            x = channels[level]
        if i < levels - 1:
            yield from conv(f"up_blocks.{i}.upsamplers.0.conv", x, x)
    yield from norm("conv_norm_out", x)
    yield from conv("conv_out", c["out_channels"], x)


def vae(c):
    channels, layers, latent = c["block_out_channels"], c["layers_per_block"], c["latent_channels"]

    def middle(at, x):
        yield from resnet(at + ".resnets.0", x, x)
        yield from norm(at + ".attentions.0.group_norm", x)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from linear(f"{at}.attentions.0.{name}", x, x)
        yield from resnet(at + ".resnets.1", x, x)

    x = channels[0]
    yield from conv("encoder.conv_in", x, c["in_channels"])
    for i, out in enumerate(channels):
        for j in range(layers):
            yield from resnet(f"encoder.down_blocks.{i}.resnets.{j}", x, out)
            x = out
        if i < len(channels) - 1:
            yield from conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", x, x)
    yield from middle("encoder.mid_block", x)
    yield from norm("encoder.conv_norm_out", x)
    yield from conv("encoder.conv_out", 2 * latent, x)
    yield from conv("quant_conv", 2 * latent, 2 * latent, 1)
    yield from conv("post_quant_conv", latent, latent, 1)
    yield from conv("decoder.conv_in", x, latent)
    yield from middle("decoder.mid_block", x)
    for i, out in enumerate(reversed(channels)):
        for j in range(layers + 1):
            yield from resnet(f"decoder.up_blocks.{i}.resnets.{j}", x, out)
            x = out
        if i < len(channels) - 1:
            yield from conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", x, x)
    yield from norm("decoder.conv_norm_out", x)
    yield from conv("decoder.conv_out", c["out_channels"], x)


def text_encoder(c):
    h, f = c["hidden_size"], c["intermediate_size"]
    yield "text_model.embeddings.token_embedding.weight", (c["vocab_size"], h)
    yield "text_model.embeddings.position_embedding.weight", (c["max_position_embeddings"], h)
    for i in range(c["num_hidden_layers"]):
        at = f"text_model.encoder.layers.{i}."
        yield from norm(at + "layer_norm1", h)
        for name in ("q", "k", "v", "out"):
            yield from linear(f"{at}self_attn.{name}_proj", h, h)
        yield from norm(at + "layer_norm2", h)
        yield from linear(at + "mlp.fc1", f, h)
        yield from linear(at + "mlp.fc2", h, f)
    yield from norm("text_model.final_layer_norm", h)
    if "CLIPTextModelWithProjection" in c["architectures"]:
        yield from linear("text_projection", c["projection_dim"], h, False)


PARTS = dict(unet=unet, vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder)


def values(name, shape):
    """The numbers of one tensor, in pieces."""
    if len(shape) == 1:
        yield np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float16)
        return
    random = np.random.default_rng([20, zlib.crc32(name.encode())])
    std = 0.02 if "embedding" in name and "embeddings." in name else 1 / math.sqrt(math.prod(shape[1:]))
    rows = max(1, (1 << 22) // math.prod(shape[1:]))
    for row in range(0, shape[0], rows):
        part = (min(rows, shape[0] - row), *shape[1:])
        yield (random.standard_normal(part, np.float32) * np.float32(std)).astype(np.float16)


def write(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".part", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            for part in values(name, shape):
                file.write(part.tobytes())
    os.replace(path + ".part", path)
    print(f"{path}: {offset / 2e6:.1f} M parameters")


def dump(value, *path):
    with open(os.path.join(*path), "w") as file:
        json.dump(value, file, indent=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("out")
    parser.add_argument("--configs")
    parser.add_argument("--tokenizer", default=os.path.join(HERE, "../models/demo-scenes/tokenizer"))
    parser.add_argument("--parts")
    args = parser.parse_args()
    model = MODELS[args.name]
    index = {"_class_name": "StableDiffusionXLPipeline" if "text_encoder_2" in model else "StableDiffusionPipeline"}
    for part in args.parts.split(",") if args.parts else model:
        folder = os.path.join(args.out, part)
        os.makedirs(folder, exist_ok=True)
        config = dict(DEFAULTS[part], **model[part])
        if args.configs:
            with open(os.path.join(args.configs, part, "config.json")) as file:
                config = dict(DEFAULTS[part], **json.load(file))
        dump(config, folder, "config.json")
        file = "model.safetensors" if part.startswith("text") else "diffusion_pytorch_model.safetensors"
        write(os.path.join(folder, file), list(PARTS[part](config)))
    index["unet"], index["vae"] = ["diffusers", "UNet2DConditionModel"], ["diffusers", "AutoencoderKL"]
    for part in model:
        if part.startswith("text"):
            index[part] = ["transformers", dict(DEFAULTS[part], **model[part])["architectures"][0]]
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
            shutil.copytree(args.tokenizer, os.path.join(args.out, part.replace("text_encoder", "tokenizer")),
                dirs_exist_ok=True)
    os.makedirs(os.path.join(args.out, "scheduler"), exist_ok=True)
    dump(SCHEDULERS[args.name], args.out, "scheduler", "scheduler_config.json")
    index["scheduler"] = ["diffusers", SCHEDULERS[args.name]["_class_name"]]
    dump(index, args.out, "model_index.json")


if __name__ == "__main__":
    main()
