"""What the stages share: sizes, seeding, and training on a few CPU cores.

One process of one thread per core with gradients averaged is faster on a CPU than one process of many threads.
"""

import math
import os
import time
from multiprocessing import get_context

import numpy as np

SEQ = 48  # tokens per caption
CAPTIONS = 4  # wordings kept per picture
VAE_CH = (32, 32, 64, 128)
UNET_CH = (64, 64, 128)
HEADS = 2  # per attention (SD 1.5 has 8)
TEXT = 128
BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def setup(o, salt, rank=0):
    """Same torch seed everywhere (equal initial weights), own numpy stream per rank."""
    import torch

    torch.manual_seed(o.seed + salt)
    return torch, np.random.default_rng((o.seed, salt, rank))


def pixels(torch, arr):
    return torch.from_numpy(np.array(arr)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class Trainer:
    """AdamW, warm-up and cosine, gradient average over one-thread processes (faster on CPU than one process
    with many threads). The fraction done rides along with the gradients so that all ranks agree on it."""

    def __init__(self, o, params, steps, minutes, lr, warm, wd):
        import torch

        self.torch, self.params, self.world = torch, list(params), o.threads
        self.opt = torch.optim.AdamW(self.params, lr=lr, betas=(0.9, 0.99), weight_decay=wd, fused=True)
        self.steps, self.seconds, self.lr, self.warm = steps, minutes * 60, lr, warm
        self.t0, self.step, self.done = time.time(), 0, 0.0

    def update(self, loss):
        torch = self.torch
        loss.backward()
        f = max((self.step + 1) / self.steps, (time.time() - self.t0) / self.seconds)
        flat = torch.cat([p.grad.reshape(-1) for p in self.params] + [torch.tensor([f])])
        if self.world > 1:
            torch.distributed.all_reduce(flat)
            flat /= self.world
        self.done = float(flat[-1])
        flat = flat[:-1]
        flat *= min(1.0, 1.0 / (float(flat.norm()) + 1e-6))
        i = 0
        for p in self.params:
            p.grad.copy_(flat[i : i + p.numel()].view_as(p))
            i += p.numel()
        lr = self.lr * min(1, (self.step + 1) / self.warm) * (0.5 + 0.5 * math.cos(math.pi * min(1, self.done)))
        self.now = max(lr, self.lr * 0.01)
        for g in self.opt.param_groups:
            g["lr"] = self.now
        self.opt.step()
        self.opt.zero_grad(set_to_none=False)
        self.step += 1


def _rank(module, name, r, o, url):
    import importlib

    import torch

    os.setsid()  # own session: with autogroup scheduling every rank then gets its own share of the cores
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=url, rank=r, world_size=o.threads)
    getattr(importlib.import_module(module), name)(o, r)
    torch.distributed.destroy_process_group()


def parallel(module, name, o):
    """Run `module.name(o, rank)` in o.threads processes that know each other, and wait for all of them."""
    path = os.path.abspath(f"{o.work}/rendezvous_{os.getpid()}_{name}")
    ps = [
        get_context("spawn").Process(target=_rank, args=(module, name, r, o, "file://" + path))
        for r in range(o.threads)
    ]
    for p in ps:
        p.start()
    for p in ps:
        p.join()
    assert all(p.exitcode == 0 for p in ps)
