#!/usr/bin/env python3
"""Golden files of what goes into a diffusion model beside noise: textual inversion, input pictures and masks.

    python tools/golden_prompts.py [--out tests/golden]

Needs torch, diffusers, transformers, Pillow and safetensors from PyPI; downloads nothing. Reads tests/golden/clip_l,
which tools/golden_nets.py wrote. What each folder holds is written in tests/golden/README.md.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
torch.set_num_threads(1)


def textual_inversion(out):
    """`clip_l` with three more tokens, as diffusers adds them: a larger table whose last rows are the vectors."""
    config = transformers.CLIPTextConfig(**json.load(open(f"{out}/clip_l/config.json", encoding="utf-8")))
    model = transformers.CLIPTextModel(config)
    weights = {name: value.float() for name, value in load_file(f"{out}/clip_l/weights.safetensors").items()}
    model.load_state_dict(weights, strict=True)
    model.eval()
    generator = torch.Generator().manual_seed(11)
    # Large against the table's own rows, as trained vectors are.
    vectors = (0.2 * torch.randn(3, config.hidden_size, generator=generator)).half().float()
    own = config.vocab_size
    model.resize_token_embeddings(own + 3, mean_resizing=False)
    ids = torch.randint(1, 298, (2, 77), generator=generator)
    ids[:, 0] = 298
    ids[0, 5:8] = torch.tensor([300, 301, 302])
    ids[1, 3], ids[1, 30] = 302, 300
    for row, end in ((0, 12), (1, 50)):
        ids[row, end:] = 299
    with torch.no_grad():
        model.get_input_embeddings().weight[own:] = vectors
        state = model(ids).last_hidden_state
    folder = f"{out}/textual_inversion"
    os.makedirs(folder, exist_ok=True)
    save_file({"emb_params": vectors}, f"{folder}/embedding.safetensors")
    save_file({"input_ids": ids.int(), "last_hidden_state": state.contiguous()}, f"{folder}/states.safetensors")


def pictures(out):
    """Files as people have them, and what diffusers' image processors make of them."""
    folder = f"{out}/pictures"
    os.makedirs(folder, exist_ok=True)
    random = numpy.random.default_rng(5)
    y, x = numpy.mgrid[0:21, 0:31]
    waves = 127 + 90 * numpy.sin(numpy.stack([x / 3, y / 4 + x / 9, (x + y) / 5], axis=-1))
    rgb = (waves + random.normal(0, 25, waves.shape)).clip(0, 255).astype(numpy.uint8)
    Image.fromarray(rgb).save(f"{folder}/picture.png")
    spots = (numpy.hypot(x - 11, y - 9) < 7) * 200 + random.integers(0, 56, x.shape)
    Image.fromarray(spots.astype(numpy.uint8)).save(f"{folder}/mask_gray.png")
    Image.fromarray(rgb[::-1].copy()).save(f"{folder}/mask_rgb.png")
    photo = Image.fromarray(waves.clip(0, 255).astype(numpy.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees
    photo.save(f"{folder}/photo.jpg", quality=95, subsampling=0, exif=exif)

    images, masks = VaeImageProcessor(), VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    golden = {"photo": torch.from_numpy(numpy.asarray(load_image(f"{folder}/photo.jpg")).copy()).int()}
    for width, height in ((24, 16), (48, 40)):
        size = f"{width}x{height}"
        golden[f"picture.{size}"] = images.preprocess(load_image(f"{folder}/picture.png"), height, width)[0]
        for name in ("gray", "rgb"):
            # Not through load_image, whose RGB would change nothing but the order of two roundings.
            mask = masks.preprocess(Image.open(f"{folder}/mask_{name}.png"), height, width)
            small = torch.nn.functional.interpolate(mask, size=(height // 8, width // 8))
            golden[f"mask_{name}.{size}"], golden[f"mask_{name}.{size}.latents"] = mask[0, 0], small[0, 0]
    save_file({name: value.contiguous().clone() for name, value in golden.items()}, f"{folder}/golden.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(ROOT, "tests/golden"))
    out = parser.parse_args().out
    textual_inversion(out)
    pictures(out)


if __name__ == "__main__":
    main()
