#!/usr/bin/env python3
"""Tiny models with random weights and what diffusers' pipelines paint with them in float32 on the CPU.

    python tools/golden_modes.py [--out tests/golden]

    sd_tiny       Stable Diffusion 1.x; beside it UNets of nine channels and with the guidance scale as an input, two
                  ControlNets, two LoRAs, a textual inversion, a picture: inpainting, LCM, few steps, ControlNet, LoRA
    refiner_tiny  SDXL's refiner: the second text encoder alone, an aesthetic score in place of the target size
    ddpm_tiny     an unconditional UNet2DModel of three channels, DDPMPipeline
    ddim_tiny     one of a single channel, DDIMPipeline

`golden.safetensors` of each folder holds the last latents, which for the last two are the picture before it is clamped.
Needs torch, diffusers, transformers, peft, Pillow and safetensors from PyPI; downloads nothing. The committed folders were
made with torch 2.15, diffusers 0.42.1, transformers 5.24 and peft 0.21. Weights are float16 and the runs are float32 on
exactly these values. Every run draws all its noise from `torch.Generator().manual_seed(7)`.
"""
import argparse
import copy
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import torch
import transformers
from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from golden_lora import ATTENTION, TEXT, adapt, kohya
from golden_sdxl import NEGATIVE, PROMPT, ROOT, TOKENIZER, clip, settle
from peft.utils import get_peft_model_state_dict
from PIL import Image, ImageOps
from safetensors.torch import save_file

WIDTH, HEIGHT = 48, 32
BLOCKS = dict(layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4)
CROSS = dict(BLOCKS, cross_attention_dim=16, attention_head_dim=2,
             down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
LORAS = {"style": (0.7, dict(r=3, lora_alpha=2), ATTENTION + ["conv1", "proj_in", "ff.net.0.proj"], TEXT + ["fc1"]),
         "detail": (-0.5, dict(r=2, lora_alpha=4), ATTENTION, TEXT)}


def unet(seed, **changes):
    torch.manual_seed(seed)
    return settle(diffusers.UNet2DConditionModel(**{**CROSS, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                                                    "sample_size": 16, **changes}))


def vae():
    torch.manual_seed(3)
    return settle(diffusers.AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=32, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2))


def controlnet(seed):
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel(**CROSS, conditioning_embedding_out_channels=(8, 12))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        # What training would have made of the zeros.
        if parameter.abs().max() == 0:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return settle(net)


def picture():
    image = Image.open(os.path.join(ROOT, "tests", "golden", "demo_scenes.png")).convert("RGB")
    return image.resize((WIDTH, HEIGHT), Image.LANCZOS)


def scheduled(name, scheduler, **changes):
    """A scheduler of another class on the same configuration, whole as a file has it."""
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    return getattr(diffusers, name).from_config(config, **changes)


class Runs:
    """Collects the last latents of runs of pipelines that share nets."""

    def __init__(self, nets):
        self.nets, self.golden = nets, {}

    def run(self, name, kind, scheduler, changes=None, nets=None, **inputs):
        nets = {**self.nets, **(nets or {})}
        nets["scheduler"] = scheduled(scheduler, nets["scheduler"], **(changes or {}))
        pipe = kind(**nets)
        pipe.set_progress_bar_config(disable=True)
        result = pipe(**{**dict(prompt=PROMPT, generator=torch.Generator().manual_seed(7), output_type="latent"), **inputs})
        self.golden[name] = result.images.contiguous()


def lora_files(out, nets):
    """Two adapters in the nets, and as files: under kohya's names and under PEFT's."""
    models = {"unet": nets["unet"], "text_encoder": nets["text_encoder"]}
    for seed, (name, (_, config, *targets)) in enumerate(LORAS.items()):
        states = {}
        for (key, model), target in zip(models.items(), targets):
            adapt(model, name, config, target, 30 + seed)
            state = get_peft_model_state_dict(model, adapter_name=name)
            states[key] = {k: v.detach().half().clone() for k, v in state.items()}
        alpha = config["lora_alpha"]
        if name == "style":
            save_file(kohya("lora_unet_", states["unet"], alpha) | kohya("lora_te_text_model_", states["text_encoder"], alpha),
                      f"{out}/{name}.safetensors")
            continue
        # A set has no order that a file could keep.
        plain = lambda config: {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        metadata = {f"{key}_lora_adapter_metadata": plain(model.peft_config[name]) for key, model in models.items()}
        diffusers.StableDiffusionPipeline.save_lora_weights(
            out, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
            weight_name=f"{name}.safetensors", **metadata)


def stable_diffusion(out):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    nets = dict(vae=vae(), text_encoder=clip(transformers.CLIPTextModel, 16, tokenizer), tokenizer=tokenizer, unet=unet(0),
                scheduler=scheduler, safety_checker=None, feature_extractor=None)
    extra = {"unet_inpaint": unet(1, in_channels=9), "unet_lcm": unet(2, time_cond_proj_dim=12),
             "controlnet_a": controlnet(4), "controlnet_b": controlnet(5)}
    runs, image = Runs(nets), picture()
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (WIDTH // 2, 0, WIDTH, HEIGHT))
    size = dict(width=WIDTH, height=HEIGHT)
    guided = dict(negative_prompt=NEGATIVE, guidance_scale=4.0)

    masked = dict(guided, image=image, mask_image=mask, nets={"unet": extra["unet_inpaint"]}, **size)
    inpaint = diffusers.StableDiffusionInpaintPipeline
    runs.run("inpaint", inpaint, "DDIMScheduler", num_inference_steps=3, strength=1.0, **masked)
    runs.run("inpaint_part", inpaint, "EulerAncestralDiscreteScheduler", num_inference_steps=5, strength=0.6, **masked)
    lcm = dict(guidance_scale=8.5, nets={"unet": extra["unet_lcm"]})
    runs.run("lcm", diffusers.LatentConsistencyModelPipeline, "LCMScheduler", num_inference_steps=3, **size, **lcm)
    few = dict(guidance_scale=0.0, changes=dict(timestep_spacing="trailing"), **size)
    for steps in (1, 4):
        runs.run(f"turbo_{steps}", diffusers.StableDiffusionPipeline, "EulerAncestralDiscreteScheduler",
                 num_inference_steps=steps, **few)
    control = diffusers.StableDiffusionControlNetPipeline
    runs.run("control", control, "DDIMScheduler", nets={"controlnet": extra["controlnet_a"]}, image=image,
             num_inference_steps=3, controlnet_conditioning_scale=0.8, **guided, **size)
    runs.run("control_two", control, "DDIMScheduler", nets={"controlnet": [extra["controlnet_a"], extra["controlnet_b"]]},
             image=[image, ImageOps.mirror(image)], num_inference_steps=3, controlnet_conditioning_scale=[0.8, 0.5],
             **guided, **size)
    runs.run("plain", diffusers.StableDiffusionPipeline, "DDIMScheduler", num_inference_steps=3, **guided, **size)

    shutil.rmtree(out, ignore_errors=True)
    copies = lambda model: copy.deepcopy(model).half()
    saved = {key: copies(net) if isinstance(net, torch.nn.Module) else net for key, net in nets.items()}
    diffusers.StableDiffusionPipeline(**saved, requires_safety_checker=False).save_pretrained(out)
    for name, net in extra.items():
        copies(net).save_pretrained(f"{out}/{name}")
    image.save(f"{out}/picture.png")

    vectors = (0.3 * torch.randn(2, 16, generator=torch.Generator().manual_seed(11))).half().float()
    save_file({"<tidal>": vectors}, f"{out}/tidal.safetensors")
    told = {key: copy.deepcopy(nets[key]) for key in ("text_encoder", "tokenizer")}
    loader = diffusers.StableDiffusionPipeline(**{**nets, **told}, requires_safety_checker=False)
    loader.load_textual_inversion({"<tidal>": vectors}, token="<tidal>")
    runs.run("textual_inversion", diffusers.StableDiffusionPipeline, "DDIMScheduler", nets=told, num_inference_steps=3,
             prompt="a <tidal> boat", **guided, **size)

    adapted = {key: copy.deepcopy(nets[key]) for key in ("unet", "text_encoder")}
    lora_files(out, adapted)
    for name, weights in {"lora": {"style": 0.7}, "lora_two": {n: w for n, (w, *_) in LORAS.items()}}.items():
        for model in adapted.values():
            set_weights_and_activate_adapters(model, list(weights), list(weights.values()))
        runs.run(name, diffusers.StableDiffusionPipeline, "DDIMScheduler", nets=adapted, num_inference_steps=3,
                 **guided, **size)
    return runs.golden


def refiner(out):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                                 timestep_spacing="leading", steps_offset=1)
    net = unet(6, cross_attention_dim=24, use_linear_projection=True, addition_embed_type="text_time",
               addition_time_embed_dim=8, projection_class_embeddings_input_dim=5 * 8 + 16)
    nets = dict(vae=vae(), text_encoder=None, tokenizer=None, tokenizer_2=tokenizer, unet=net, scheduler=scheduler,
                text_encoder_2=clip(transformers.CLIPTextModelWithProjection, 24, tokenizer),
                requires_aesthetics_score=True, add_watermarker=False)
    runs, kind = Runs(nets), diffusers.StableDiffusionXLImg2ImgPipeline
    common = dict(image=picture(), strength=0.6, num_inference_steps=5, guidance_scale=5.0)
    runs.run("empty_negative", kind, "EulerDiscreteScheduler", **common)
    runs.run("negative", kind, "EulerDiscreteScheduler", negative_prompt=NEGATIVE, **common)
    runs.run("unguided", kind, "EulerDiscreteScheduler", **{**common, "guidance_scale": 1.0})
    kind(**nets).to(torch.float16).save_pretrained(out)
    return runs.golden


def unconditional(out, pipeline, scheduler, channels, runs):
    torch.manual_seed(channels)
    net = settle(diffusers.UNet2DModel(
        **BLOCKS, sample_size=16, in_channels=channels, out_channels=channels, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")))
    golden = {}
    for name, (kind, scheduler_class, inputs) in runs.items():
        pipe = kind(net, scheduled(scheduler_class, scheduler))
        pipe.set_progress_bar_config(disable=True)
        step, last = pipe.scheduler.step, []

        def kept(*arguments, **keywords):
            result = step(*arguments, **keywords)
            last[:] = [result.prev_sample]
            return result

        pipe.scheduler.step = kept
        image = pipe(generator=torch.Generator().manual_seed(7), output_type="pt", **inputs).images
        image = torch.as_tensor(image)
        assert torch.equal((last[0] / 2 + 0.5).clamp(0, 1), image)
        golden[name] = last[0].contiguous()
    pipeline(copy.deepcopy(net).half(), scheduler).save_pretrained(out)
    return golden


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden"))
    root = arguments.parse_args().out
    ddpm, ddim = diffusers.DDPMPipeline, diffusers.DDIMPipeline
    made = {
        "sd_tiny": stable_diffusion,
        "refiner_tiny": refiner,
        "ddpm_tiny": lambda out: unconditional(out, ddpm, diffusers.DDPMScheduler(variance_type="fixed_large"), 3, {
            "ddpm": (ddpm, "DDPMScheduler", dict(num_inference_steps=6)),
            "ddim": (ddim, "DDIMScheduler", dict(num_inference_steps=6)),
            "batch": (ddpm, "DDPMScheduler", dict(num_inference_steps=3, batch_size=2))}),
        "ddim_tiny": lambda out: unconditional(out, ddim, diffusers.DDIMScheduler(clip_sample=False), 1, {
            "ddim": (ddim, "DDIMScheduler", dict(num_inference_steps=5)),
            "ddpm": (ddpm, "DDPMScheduler", dict(num_inference_steps=5))}),
    }
    for folder, make in made.items():
        out = os.path.join(root, folder)
        golden = make(out)
        save_file(golden, os.path.join(out, "golden.safetensors"))
        size = sum(os.path.getsize(os.path.join(a, f)) for a, _, files in os.walk(out) for f in files)
        assert size < 1_000_000, f"{size} bytes, a case should stay below 1 MB"
        print(f"{folder}: {size} bytes")
        for name, value in golden.items():
            print(f"  {name:18} {tuple(value.shape)} mean {value.mean():.4f} std {value.std():.4f}")


if __name__ == "__main__":
    main()
