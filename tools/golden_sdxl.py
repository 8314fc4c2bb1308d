#!/usr/bin/env python3
"""A tiny model in SDXL's form with random weights, and diffusers' final latents for it in float32 on the CPU.

    python tools/golden_sdxl.py [--out tests/golden/sdxl_tiny]

Needs torch, diffusers, transformers and safetensors from PyPI; downloads nothing. The committed folder was made with
torch 2.15, diffusers 0.42.1 and transformers 5.24. Both tokenizers are that of models/demo-scenes, the second one padded
with its token 0. Weights are float16 and the run is float32 on exactly these values.
"""
import argparse
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import torch
import transformers
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
TOKENIZER = os.path.join(ROOT, "models", "demo-scenes", "tokenizer")
PROMPT, NEGATIVE = "a red boat on a calm sea", "a green tree"
torch.set_num_threads(2)


def settle(model):
    """Disturb vectors and make every parameter exact in float16."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.half().float())
    return model.eval()


def clip(kind, width, tokenizer):
    torch.manual_seed(width)
    return settle(kind(transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, hidden_act="gelu", projection_dim=16,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden", "sdxl_tiny"))
    out = arguments.parse_args().out
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    second = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    second.pad_token = second.convert_ids_to_tokens(0)
    torch.manual_seed(0)
    unet = settle(diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 24), norm_num_groups=8,
        cross_attention_dim=40, attention_head_dim=(2, 3), use_linear_projection=True, transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16))
    vae = settle(diffusers.AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.13025, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2))
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                                 timestep_spacing="leading", steps_offset=1)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=clip(transformers.CLIPTextModel, 16, tokenizer),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection, 24, second), tokenizer=tokenizer,
        tokenizer_2=second, unet=unet, scheduler=scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)

    def run(**changes):
        inputs = dict(prompt=PROMPT, generator=torch.Generator().manual_seed(7), num_inference_steps=4, guidance_scale=5.0,
                      output_type="latent", height=32, width=48)
        return pipe(**{**inputs, **changes}).images.contiguous()

    golden = {"empty_negative": run(), "negative": run(negative_prompt=NEGATIVE), "unguided": run(guidance_scale=1.0),
              "batch": run(num_images_per_prompt=2)}
    shutil.rmtree(out, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(out)
    save_file(golden, os.path.join(out, "golden.safetensors"))
    size = sum(os.path.getsize(os.path.join(a, f)) for a, _, files in os.walk(out) for f in files)
    assert size < 1_000_000, f"{size} bytes, a case should stay below 1 MB"
    print(json.dumps({name: [round(float(v.mean()), 4), round(float(v.std()), 4)] for name, v in golden.items()}), size)


if __name__ == "__main__":
    main()
