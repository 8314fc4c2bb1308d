#!/usr/bin/env python3
"""Golden run of the shipped picture model: one prompt through diffusers' own pipeline in float32.

    python tools/golden_demo.py [--model models/demo-scenes] [--out tests/golden]

Writes demo_scenes.safetensors and demo_scenes.png. Run it again whenever the weights in models/demo-scenes change.
Needs torch, diffusers, transformers, safetensors, numpy and pillow from PyPI; downloads nothing.

Tensors (torch layouts, float32): `input_ids` and `negative_ids` i32 [1, 48]; `prompt_embeds`, `negative_embeds`
[1, 48, 128]; `latents` [1, 4, 16, 16], the start, torch.randn with seed 7; `timesteps` [25]; `noise.I` the guided
prediction of step I before the scheduler and `lat.I` the latents after step I, for every step; `image` [128, 128, 3]
in 0..1, which the PNG holds rounded to bytes.
"""
import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
PROMPT = "a red boat on a calm sea at sunset, snowy mountains behind"
STEPS, GUIDANCE, SEED = 25, 4.0, 7


def token_ids(pipe, text):
    width = pipe.tokenizer.model_max_length
    return pipe.tokenizer(text, padding="max_length", truncation=True, max_length=width, return_tensors="pt").input_ids


def main(options):
    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED))
    golden = {"latents": latents.clone()}
    for ids, embeds, text in (("input_ids", "prompt_embeds", PROMPT), ("negative_ids", "negative_embeds", "")):
        tokens = token_ids(pipe, text)
        golden[ids] = tokens.int()
        with torch.no_grad():
            golden[embeds] = pipe.text_encoder(tokens).last_hidden_state

    predictions, step = [], pipe.scheduler.step

    def recording_step(noise, *rest, **named):
        predictions.append(noise.clone())
        return step(noise, *rest, **named)

    def keep(_pipe, index, _timestep, tensors):
        golden[f"lat.{index}"] = tensors["latents"].clone()
        return tensors

    pipe.scheduler.step = recording_step
    with torch.no_grad():
        image = pipe(prompt_embeds=golden["prompt_embeds"], negative_prompt_embeds=golden["negative_embeds"],
                     latents=latents, num_inference_steps=STEPS, guidance_scale=GUIDANCE, eta=0.0,
                     callback_on_step_end=keep, output_type="np").images[0]
    golden["timesteps"] = pipe.scheduler.timesteps.float()
    golden["image"] = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    golden.update({f"noise.{index}": value for index, value in enumerate(predictions)})

    note = {"prompt": PROMPT, "steps": str(STEPS), "guidance": str(GUIDANCE), "sampler": "ddim", "seed": str(SEED)}
    target = os.path.join(options.out, "demo_scenes")
    save_file({name: value.contiguous() for name, value in golden.items()}, f"{target}.safetensors", metadata=note)
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(f"{target}.png", optimize=True)
    print(f"{target}.safetensors {os.path.getsize(f'{target}.safetensors')} bytes, final latents std {golden[f'lat.{STEPS - 1}'].std():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "demo-scenes"))
    parser.add_argument("--out", default=os.path.join(ROOT, "tests", "golden"))
    main(parser.parse_args())
