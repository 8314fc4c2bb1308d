#!/usr/bin/env python3
"""Whole pipelines of diffusers on the shipped picture model, in float32 on the CPU: the final latents.

    python tools/golden_pipelines.py [--out tests/golden/pipelines.safetensors]

Needs torch, diffusers, transformers and safetensors from PyPI; downloads nothing. The committed file was made with
torch 2.15, diffusers 0.42.1 and transformers 5.24. Every case starts from `torch.Generator().manual_seed(7)` and draws
everything from it: the posterior of a picture, the noise of the start, the noise of a sampler. The picture to start
from is tests/golden/demo_scenes.png, the mask its right half.
"""
import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
MODEL = os.path.join(ROOT, "models", "demo-scenes")
PROMPT, NEGATIVE = "a red boat on a calm sea at sunset, snowy mountains behind", "a green tree"
torch.set_num_threads(2)

# name → scheduler class, what it changes of the model's scheduler configuration, arguments of the pipeline
TEXT = {
    "ddim": ("DDIMScheduler", {}, dict(num_inference_steps=4)),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True), dict(num_inference_steps=5)),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, dict(num_inference_steps=4)),
    "lcm": ("LCMScheduler", {}, dict(num_inference_steps=3, guidance_scale=1.0)),
    "heun": ("HeunDiscreteScheduler", {}, dict(num_inference_steps=3)),
    "unipc": ("UniPCMultistepScheduler", {}, dict(num_inference_steps=5)),
    "plms": ("PNDMScheduler", dict(skip_prk_steps=True), dict(num_inference_steps=5)),
    "rescaled": ("DDIMScheduler", {}, dict(num_inference_steps=3, guidance_scale=7.5, guidance_rescale=0.7)),
    "clip_skip": ("DDIMScheduler", {}, dict(num_inference_steps=3, clip_skip=1)),
    "batch": ("EulerAncestralDiscreteScheduler", {}, dict(num_inference_steps=2, num_images_per_prompt=2)),
}
PICTURE = {
    "image_ddim": ("DDIMScheduler", {}, dict(num_inference_steps=5, strength=0.6)),
    "image_euler_a": ("EulerAncestralDiscreteScheduler", {}, dict(num_inference_steps=5, strength=0.6)),
    "image_dpmpp_2m": ("DPMSolverMultistepScheduler", {}, dict(num_inference_steps=5, strength=0.6)),
}
MASK = {
    "mask_ddim": ("DDIMScheduler", {}, dict(num_inference_steps=3, strength=1.0)),
    "mask_euler_a": ("EulerAncestralDiscreteScheduler", {}, dict(num_inference_steps=5, strength=0.7)),
}


def run(kind, changes, scheduler, arguments, **inputs):
    pipe = kind.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None, feature_extractor=None,
                                requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    # diffusers looks for the final norm where transformers 4 had it.
    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **changes)
    arguments = {"guidance_scale": 4.0, **arguments}
    result = pipe(prompt=PROMPT, negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(7),
                  output_type="latent", **arguments, **inputs)
    return result.images.contiguous()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden", "pipelines.safetensors"))
    options = arguments.parse_args()
    picture = Image.open(os.path.join(ROOT, "tests", "golden", "demo_scenes.png")).convert("RGB")
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (picture.width // 2, 0, picture.width, picture.height))
    golden = {}
    for name, (scheduler, changes, extra) in TEXT.items():
        golden[name] = run(diffusers.StableDiffusionPipeline, changes, scheduler, extra)
    for name, (scheduler, changes, extra) in PICTURE.items():
        golden[name] = run(diffusers.StableDiffusionImg2ImgPipeline, changes, scheduler, extra, image=picture)
    for name, (scheduler, changes, extra) in MASK.items():
        golden[name] = run(diffusers.StableDiffusionInpaintPipeline, changes, scheduler, extra, image=picture,
                           mask_image=mask, height=picture.height, width=picture.width)
    save_file(golden, options.out)
    for name, value in golden.items():
        print(f"{name:16} {tuple(value.shape)} mean {value.mean():.4f} std {value.std():.4f}")


if __name__ == "__main__":
    main()
