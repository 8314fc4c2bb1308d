"""Mark the picture model: prompt fidelity by pixel checks, and what round-to-nearest INT4 and INT8 weights change.

    python evaluate.py --model ../../models/demo-scenes --work work [--prompts 64]

Needs torch, diffusers, transformers, numpy and pillow from PyPI. Writes sheet.png, sheet64.png, prompts.txt and
eval_RANK.json into --work. Weights are rounded, arithmetic is float32.
"""

import argparse
import json
import os
import random
import time

import numpy as np

import data
from common import SEQ, parallel, pixels


def rtn(w, bits, group=64):
    """Round to nearest, symmetric, scale = absmax / (2^(bits-1) - 1) kept in half precision.
    Groups run along (ky, kx, cin), cin fastest; a short last group is padded with zeros."""
    import torch

    top = 2 ** (bits - 1) - 1
    x = w.permute(0, 2, 3, 1) if w.dim() == 4 else w
    shape = x.shape
    x = x.reshape(shape[0], -1)
    k = x.shape[1]
    x = torch.nn.functional.pad(x, (0, -k % group)).view(shape[0], -1, group)
    s = (x.abs().amax(-1, keepdim=True) / top).half().float()
    q = (x / s.clamp(min=1e-12)).round().clamp(-top, top) * s
    q = q.view(shape[0], -1)[:, :k].reshape(shape)
    return q.permute(0, 3, 1, 2).contiguous() if w.dim() == 4 else q


VARIANTS = {
    "fp16": None,
    "int8": (8, ()),
    "int4": (4, ()),
    "int4, ends fp16": (4, ("conv_in.", "conv_out.", "time_embedding.")),
    "int4, ends + time_emb_proj fp16": (4, ("conv_in.", "conv_out.", "time_embedding.", "time_emb_proj")),
}


def quantised(unet, spec):
    import copy
    import torch

    u = copy.deepcopy(unet)
    n = 0
    if spec:
        for name, m in u.named_modules():
            if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) and not any(s in name + "." for s in spec[1]):
                m.weight.data = rtn(m.weight.data, spec[0])
                n += m.weight.numel()
    return u, n / sum(p.numel() for p in u.parameters())


def load_pipe(o):
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(o.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def eval_prompts(n, seed):
    S = [data.sample(900_000_000 + seed * 1000 + i, full=True) for i in range(n)]
    return [s[1] for s in S], [s[2] for s in S], [s[0] for s in S]


def generate(pipe, prompts, first=0, steps=25, guidance=4.0, chunk=16):
    import torch

    out = []
    for i in range(0, len(prompts), chunk):
        g = [torch.Generator().manual_seed(7000 + first + i + j) for j in range(len(prompts[i : i + chunk]))]
        with torch.no_grad():
            out.append(
                pipe(
                    prompts[i : i + chunk],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=g,
                    height=data.SIZE,
                    width=data.SIZE,
                    output_type="np",
                ).images
            )
    return np.concatenate(out)


def fidelity(images, attrs):
    R = [data.check(np.round(im * 255), a) for im, a in zip(images, attrs)]
    r = {k: round(float(np.mean([x[k] for x in R])), 3) for k in R[0]}
    one = [x["all"] for x, a in zip(R, attrs) if len(a["objects"]) == 1]
    r["all, one object"] = round(float(np.mean(one)), 3)
    return r


def eval_variant(o, rank):
    """One share of the variants; the fp16 pictures come first, from a file."""
    import torch

    pipe = load_pipe(o)
    base = pipe.unet
    texts, attrs, _ = eval_prompts(o.prompts, o.seed)
    names = list(VARIANTS)[1:][rank :: o.threads]
    # fp16, this rank's share of the prompts
    t = time.time()
    half = len(texts) // o.threads
    mine = slice(rank * half, (rank + 1) * half)
    np.save(f"{o.work}/gen_fp16_{rank}.npy", generate(pipe, texts[mine], rank * half))
    if rank == 0:
        print("fp16 share:", round(time.time() - t), "s", flush=True)
    torch.distributed.barrier()
    ref = np.concatenate([np.load(f"{o.work}/gen_fp16_{r}.npy") for r in range(o.threads)])
    rows = []
    if rank == 0:
        rows.append(dict(variant="fp16", weights=0, **fidelity(ref, attrs)))
        print(rows[-1], flush=True)
        data.sheet([data.Image.fromarray(np.round(x * 255).astype(np.uint8)) for x in ref[:16]], cols=4).save(
            f"{o.work}/sheet.png"
        )
        data.sheet([data.Image.fromarray(np.round(x * 255).astype(np.uint8)) for x in ref]).save(
            f"{o.work}/sheet64.png"
        )
        with open(f"{o.work}/prompts.txt", "w") as f:
            f.write("\n".join(texts) + "\n")
    for name in names:
        u, share = quantised(base, VARIANTS[name])
        pipe.unet = u
        img = generate(pipe, texts)
        mse = ((img[:16] - ref[:16]) ** 2).mean((1, 2, 3))
        np.save(f"{o.work}/gen_{name.replace(' ', '_').replace(',', '')}.npy", img[:16])
        rows.append(
            dict(
                variant=name,
                weights=round(share, 3),
                psnr16=round(float((-10 * np.log10(mse)).mean()), 2),
                psnr64=round(float((-10 * np.log10(((img - ref) ** 2).mean((1, 2, 3)))).mean()), 2),
                **fidelity(img, attrs),
                rel=eps_error(o, pipe, base, u),
            )
        )
        print(rows[-1], flush=True)
        json.dump(rows, open(f"{o.work}/eval_{rank}.json", "w"), indent=1)
    json.dump(rows, open(f"{o.work}/eval_{rank}.json", "w"), indent=1)


def eps_error(o, pipe, base, u, ts=(20, 100, 250, 500, 750, 900, 980), n=24):
    """Relative L2 of the predicted noise against fp16, by timestep, on held-out pictures with their captions."""
    import torch

    torch.manual_seed(11)
    texts, _, imgs = eval_prompts(n, o.seed + 5)
    ids = pipe.tokenizer(texts, padding="max_length", truncation=True, max_length=SEQ, return_tensors="pt").input_ids
    with torch.no_grad():
        c = pipe.text_encoder(ids).last_hidden_state
        z = (
            pipe.vae.encode(pixels(torch, np.stack([np.asarray(i) for i in imgs]))).latent_dist.sample()
            * pipe.vae.config.scaling_factor
        )
        out = {}
        for t in ts:
            x = pipe.scheduler.add_noise(z, torch.randn_like(z), torch.full((n,), t))
            a, b = (m(x, torch.full((n,), t), c).sample for m in (base, u))
            out[t] = round(float((a - b).norm() / a.norm()), 4)
    return out


def evaluate(o):
    import torch

    texts, attrs, imgs = eval_prompts(o.prompts, o.seed)
    print("checker on true pictures:", fidelity([np.asarray(i) / 255 for i in imgs], attrs), flush=True)
    pipe = load_pipe(o)
    x = pixels(torch, np.stack([np.asarray(i) for i in imgs]))
    with torch.no_grad():
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    print(
        "checker on VAE round trips:",
        fidelity(((y + 1) / 2).permute(0, 2, 3, 1).numpy(), attrs),
        "VAE PSNR",
        round(float((-10 * ((x - y).square().mean((1, 2, 3)) / 4).log10()).mean()), 2),
        flush=True,
    )
    random.Random(3).shuffle(attrs)
    print("checker on mismatched captions:", fidelity([np.asarray(i) / 255 for i in imgs], attrs), flush=True)
    parallel("evaluate", "eval_variant", o)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--model", default="../../models/demo-scenes")
    p.add_argument("--work", default="work")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    os.makedirs(o.work, exist_ok=True)
    evaluate(o)
