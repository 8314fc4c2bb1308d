#!/usr/bin/env python3
"""Golden tensors of LoRA adapters, computed by diffusers, transformers and peft on the CPU in float32.

    python tools/golden_lora.py [--out tests/golden]

Two adapters, `style` at 0.75 and `detail` at −0.5, on the UNet of `unet_sd15` and the text encoder of `clip_l`, which
golden_nets.py makes. Each is written twice with the same numbers: `NAME.peft.safetensors` by diffusers' own
`save_lora_weights`, `NAME.kohya.safetensors` with the names and `alpha` tensors of kohya's scripts. `io.safetensors` holds
`out` and `last_hidden_state` of the nets with both adapters for the inputs of those cases.

Needs torch, diffusers, transformers, peft and safetensors from PyPI; downloads nothing. The committed files were made with
torch 2.15, diffusers 0.42.1, transformers 5.24 and peft 0.21. Parameters are exact in float16.
"""
import argparse
import os

import diffusers
import torch
import transformers
from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from golden_nets import ROOT
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
ADAPTERS = {
    # Everything that may have an adapter: attention, feed-forward, 1x1 and 3x3 convolutions with every stride, time.
    "style": (0.75, dict(r=3, lora_alpha=2), dict(r=2, lora_alpha=2),
              ATTENTION + ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
                           "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj", "conv_in", "conv_out",
                           "linear_1", "linear_2"], TEXT + ["fc1", "fc2"]),
    "detail": (-0.5, dict(r=4, lora_alpha=8), dict(r=1, lora_alpha=0.5), ATTENTION, TEXT),
}


def case(name):
    return f"{ROOT}/tests/golden/{name}"


def load(model, name):
    weights = load_file(f"{case(name)}/weights.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval()


def adapt(model, name, config, targets, seed):
    """Adds an adapter whose numbers are large enough to show and exact in float16."""
    inject_adapter_in_model(LoraConfig(target_modules=targets, init_lora_weights=False, **config), model, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if f".{name}." in key:
                value.copy_((0.15 * torch.randn(value.shape, generator=generator)).half().float())


def kohya(prefix, state, alpha):
    tensors = {}
    for key, value in state.items():
        module, side = key.removesuffix(".weight").rsplit(".", 1)
        module = prefix + module.replace(".", "_")
        tensors[f"{module}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value.half()
        tensors[f"{module}.alpha"] = torch.tensor(float(alpha))
    return tensors


def main(out):
    os.makedirs(out, exist_ok=True)
    config = diffusers.UNet2DConditionModel.load_config(case("unet_sd15"))
    unet = load(diffusers.UNet2DConditionModel.from_config(config), "unet_sd15")
    text_config = transformers.CLIPTextConfig.from_json_file(f"{case('clip_l')}/config.json")
    text = load(transformers.CLIPTextModel(text_config), "clip_l")
    for seed, (name, (_, unet_config, clip_config, unet_targets, clip_targets)) in enumerate(ADAPTERS.items()):
        adapt(unet, name, unet_config, unet_targets, 10 + seed)
        adapt(text, name, clip_config, clip_targets, 20 + seed)
        states = [get_peft_model_state_dict(model, adapter_name=name) for model in (unet, text)]
        states = [{key: value.detach().half().clone() for key, value in state.items()} for state in states]
        configs = {"unet": unet.peft_config[name], "text_encoder": text.peft_config[name]}
        metadata = {f"{net}_lora_adapter_metadata": config.to_dict() for net, config in configs.items()}
        diffusers.StableDiffusionPipeline.save_lora_weights(
            out, unet_lora_layers=states[0], text_encoder_lora_layers=states[1],
            weight_name=f"{name}.peft.safetensors", **metadata)
        save_file(kohya("lora_unet_", states[0], unet_config["lora_alpha"])
                  | kohya("lora_te_text_model_", states[1], clip_config["lora_alpha"]), f"{out}/{name}.kohya.safetensors")
    names, weights = list(ADAPTERS), [weight for weight, *_ in ADAPTERS.values()]
    for model in (unet, text):
        set_weights_and_activate_adapters(model, names, weights)
    images, texts = load_file(f"{case('unet_sd15')}/io.safetensors"), load_file(f"{case('clip_l')}/io.safetensors")
    with torch.no_grad():
        sample = unet(images["sample"], images["timestep"], images["encoder_hidden_states"]).sample
        hidden = text(texts["input_ids"].long()).last_hidden_state
    for ours, base in ((sample, images["out"]), (hidden, texts["last_hidden_state"])):
        print(f"changed by {((ours - base).norm() / base.norm()).item():.2f}")
    save_file({"out": sample, "last_hidden_state": hidden}, f"{out}/io.safetensors")
    for file in sorted(os.listdir(out)):
        print(f"{file:28} {os.path.getsize(f'{out}/{file}'):8} bytes")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden"))
    main(f"{arguments.parse_args().out}/lora")
