#!/usr/bin/env python3
"""Golden tensors of the autoencoders besides `vae_kl` of golden_nets.py, computed by diffusers on the CPU in float32.

    python tools/golden_vae.py [--out tests/golden] [CASE ...]

    taesd      AutoencoderTiny, both halves: `image` → `encoded`, `z` → `decoded`
    vae_tiled  tiled decoding and encoding of pictures of several sizes with the weights of `vae_kl`, which golden_nets.py
               makes: `NAME.z` → `NAME.decoded`, `NAME.image` → `NAME.moments`; NAME ends in the side of a tile of latents

Needs torch, diffusers, transformers and safetensors from PyPI; downloads nothing. The committed files were made with
torch 2.15 and diffusers 0.42.1. Parameters are as in golden_nets.py.
"""
import argparse
import os

import diffusers
import torch
from golden_nets import ROOT, half_state, normal, public, settle, tapped, write
from safetensors.torch import load_file, save_file


def taesd(out):
    """Three stages instead of four and 16 channels instead of 64, else the published configuration."""
    torch.manual_seed(0)
    config = dict(encoder_block_out_channels=(16,) * 3, decoder_block_out_channels=(16,) * 3,
                  num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(3, 2, 1))
    model = settle(diffusers.AutoencoderTiny(**config), matrix_gain=1.5)
    # Latents beyond ±3, so that the clamp shows.
    image, z = normal(1, 3, 24, 32, seed=1).clamp(-1, 1), 2 * normal(2, 4, 6, 8, seed=5)
    names = ("decoder.layers.2", "decoder.layers.8", "encoder.layers.1", "encoder.layers.8")
    (encoded, decoded), taps = tapped(model, names, lambda: (model.encode(image).latents, model.decode(z).sample))
    write(f"{out}/taesd", public(model.config), half_state(model),
          {"image": image, "encoded": encoded, "z": z, "decoded": decoded, **taps})


def vae_tiled(out):
    """Last tiles that are cut off, a picture of one row of tiles, a side that ends where a tile does."""
    model = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(f"{ROOT}/tests/golden/vae_kl"))
    weights = load_file(f"{ROOT}/tests/golden/vae_kl/weights.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.eval().enable_tiling()
    golden = {}
    for name, side, height, width in (("ragged8", 8, 17, 22), ("row8", 8, 8, 14), ("large16", 16, 20, 17)):
        model.tile_latent_min_size, model.tile_sample_min_size = side, 4 * side
        z, image = normal(1, 4, height, width, seed=height), normal(1, 3, 4 * height, 4 * width, seed=width).clamp(-1, 1)
        with torch.no_grad():
            golden |= {f"{name}.z": z, f"{name}.decoded": model.decode(z).sample, f"{name}.image": image.half(),
                       f"{name}.moments": model.encode(image.half().float()).latent_dist.parameters}
    save_file({name: value.contiguous().clone() for name, value in golden.items()}, f"{out}/vae_tiled.safetensors")


CASES = {"taesd": taesd, "vae_tiled": vae_tiled}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {' '.join(CASES)}")
    arguments.add_argument("--out", default=os.path.join(ROOT, "tests", "golden"))
    options = arguments.parse_args()
    for case in options.cases or CASES:
        CASES[case](options.out)
