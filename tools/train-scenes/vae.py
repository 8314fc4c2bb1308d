"""Stages of the autoencoder: training, the latents of every picture, and going on with the decoder alone."""

import json
import time

import numpy as np

import data
from common import VAE_CH, Trainer, parallel, pixels, setup


def reconstruction(torch, x, y):
    """L1 + L2 + gradient L1, heavier where a pixel differs from the median of its row (objects, sun, peaks)."""
    w = 1 + 6 * ((x - x.median(3, keepdim=True).values).abs().amax(1, keepdim=True) / 0.4).clamp(0, 1)
    e = y - x
    grad = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[:, :, 1:] - e[:, :, :-1]).abs().mean()
    return (w * (e.abs() + 2 * e.square())).mean() + 0.5 * grad


def stage_vae(o):
    parallel("vae", "train_vae", o)


def train_vae(o, rank):
    """L1 + L2 + gradient L1 + small KL; 64x64 crops first, whole pictures for the last twelfth."""
    torch, rng = setup(o, 10, rank)
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_CH,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=data.SIZE,
    )
    if o.resume:
        vae = AutoencoderKL.from_pretrained(f"{o.work}/vae").train()
    torch.manual_seed(o.seed * 100 + rank)
    imgs = np.load(f"{o.work}/images.npy", mmap_mode="r")
    held = pixels(torch, imgs[-12:])
    train = np.array(imgs[: len(imgs) - 256][rank :: o.threads])
    batch = max(1, o.vae_batch // o.threads)
    tr = Trainer(o, vae.parameters(), o.vae_steps, o.vae_minutes, 1e-3, 100, 1e-4)
    log = []

    def crop(i):
        """The busiest of four random 64x64 windows: sky and ground are easy, objects are small."""
        best = (-1, None)
        for _ in range(4):
            y, x = rng.integers(0, data.SIZE - 64 + 1, 2)
            w = train[i, y : y + 64, x : x + 64]
            c = w[::4, ::4].astype(np.int16)
            best = max(best, (float(np.abs(c - np.median(c, 1, keepdims=True)).mean()) + rng.random() * 1e-6, (y, x)))
        y, x = best[1]
        return train[i, y : y + 64, x : x + 64]

    def losses(x):
        with torch.autocast("cpu", torch.bfloat16):
            q = vae.encode(x).latent_dist
            y = vae.decode(q.sample()).sample
        return reconstruction(torch, x, y.float()), q.kl().float().mean() / q.mean[0].numel()

    def evaluate():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            q = vae.encode(held).latent_dist
            e = vae.decode(q.mode()).sample.float().clamp(-1, 1) - held
        mse = e.square().mean((1, 2, 3)) / 4
        return dict(
            psnr=round(float((-10 * mse.log10()).mean()), 2),
            l1=round(float(e.abs().mean()), 4),
            std=round(float(q.mode().float().std()), 3),
            sigma=round(float(q.std.float().mean()), 4),
        )

    while tr.done < 1:
        full = tr.done > 0.92
        idx = rng.integers(0, len(train), max(1, batch // 4) if full else batch)
        x = train[idx] if full else np.stack([crop(i) for i in idx])
        loss, kl = losses(pixels(torch, x))
        tr.update(loss + 1e-4 * kl)
        if rank == 0 and (tr.step % 300 == 0 or tr.step == 20):
            log.append(
                dict(
                    step=tr.step,
                    s=round(time.time() - tr.t0),
                    loss=round(loss.item(), 4),
                    kl=round(kl.item(), 3),
                    lr=round(tr.now, 6),
                    **evaluate(),
                )
            )
            print("vae", log[-1], flush=True)
            vae.save_pretrained(f"{o.work}/vae")
            json.dump(log, open(f"{o.work}/vae_log.json", "w"))
    if rank == 0:
        vae.save_pretrained(f"{o.work}/vae")
        print("vae end", tr.step, "steps", evaluate(), flush=True)


def stage_latents(o):
    """Mean and spread of the posterior of every picture, once; the scaling factor makes the latents unit."""
    import torch

    parallel("vae", "encode_latents", o)
    parts = [torch.load(f"{o.work}/latents_{r}.pt") for r in range(o.threads)]
    mean, std = (torch.cat([p[k] for p in parts]) for k in ("mean", "std"))
    m = mean.float()
    scale = 1 / float((m.square() + std.float().square()).mean().sub(m.mean() ** 2).sqrt())
    torch.save(dict(mean=mean, std=std, scale=scale), f"{o.work}/latents.pt")
    print(
        "latents",
        tuple(mean.shape),
        "scaling_factor",
        round(scale, 5),
        "channel std",
        m.std((0, 2, 3)).tolist(),
        "channel mean",
        m.mean((0, 2, 3)).tolist(),
        "posterior sigma",
        float(std.float().mean()),
    )


def encode_latents(o, rank):
    torch, _ = setup(o, 20)
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(f"{o.work}/vae").eval()
    imgs = np.load(f"{o.work}/images.npy", mmap_mode="r")[: o.latents]
    share = -(-len(imgs) // o.threads)
    imgs = imgs[rank * share : (rank + 1) * share]
    mean, std = [], []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(imgs), 32):
            q = vae.encode(pixels(torch, imgs[i : i + 32])).latent_dist
            mean.append(q.mean.half())
            std.append(q.std.half())
    torch.save(dict(mean=torch.cat(mean), std=torch.cat(std)), f"{o.work}/latents_{rank}.pt")


def stage_decoder(o):
    parallel("vae", "train_decoder", o)


def train_decoder(o, rank):
    """The encoder stays as the UNet knows it; the decoder alone learns on, from the stored latents."""
    torch, rng = setup(o, 40, rank)
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(f"{o.work}/vae")
    vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)
    L = torch.load(f"{o.work}/latents.pt")
    imgs = np.load(f"{o.work}/images.npy", mmap_mode="r")[: len(L["mean"])]
    n = len(imgs) - 256
    held = pixels(torch, imgs[-32:])
    torch.manual_seed(o.seed * 100 + rank)
    params = [p for p in vae.parameters() if p.requires_grad]
    tr = Trainer(o, params, o.vae_steps, o.decoder_minutes, 6e-4, 30, 1e-4)
    while tr.done < 1:
        i = np.sort(rng.integers(0, n, 4))
        z = L["mean"][i].float() + L["std"][i].float() * torch.randn(len(i), 4, 16, 16)
        x = pixels(torch, imgs[i])
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(z).sample
        tr.update(reconstruction(torch, x, y.float()))
        if rank == 0 and (tr.step % 100 == 0 or tr.done >= 1):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                h = vae.decode(L["mean"][-32:].float()).sample.float().clamp(-1, 1) - held
            print(
                "decoder",
                tr.step,
                round(time.time() - tr.t0),
                "s, PSNR",
                round(float((-10 * (h.square().mean((1, 2, 3)) / 4).log10()).mean()), 2),
                "L1",
                round(float(h.abs().mean()), 4),
                flush=True,
            )
            vae.save_pretrained(f"{o.work}/vae")
