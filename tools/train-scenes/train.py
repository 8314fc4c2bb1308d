"""Train the picture model of models/demo-scenes: Stable Diffusion 1.5's parts in small, on captioned toy landscapes.

    python train.py all --out model                   # everything, in order; a CPU is enough
    python train.py data|tokenizer|vae|latents|unet|decoder|export     # one stage; state is kept in --work
    python train.py restore --model ../../models/demo-scenes           # take up the shipped weights, then:
    python train.py data; python train.py latents; python train.py unet --resume --unet-minutes 90; python train.py export

Needs torch, diffusers, transformers, tokenizers, safetensors, numpy and pillow from PyPI; downloads no data. Every stage
is seeded; the VAE and the UNet stages stop at the step count or at the time limit, whichever is first (the schedule
follows whichever is further along), so exact repetition needs a machine fast enough to be bound by steps.
evaluate.py marks the result.
"""

import argparse
import json
import os
import shutil
import time

import numpy as np

import data
import prepare
import vae
from common import BETAS, CAPTIONS, HEADS, SEQ, TEXT, UNET_CH, Trainer, parallel, setup


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument(
        "stage", choices=("all", "data", "tokenizer", "vae", "latents", "unet", "decoder", "export", "restore")
    )
    p.add_argument("--work", default="work")
    p.add_argument("--out", default="model")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--images", type=int, default=20480)
    p.add_argument("--latents", type=int, default=12288, help="pictures the UNet learns from")
    p.add_argument("--vae-steps", type=int, default=100000)
    p.add_argument("--vae-minutes", type=float, default=12)
    p.add_argument("--vae-batch", type=int, default=6)
    p.add_argument("--decoder-minutes", type=float, default=5)
    p.add_argument("--unet-steps", type=int, default=20000)
    p.add_argument("--unet-minutes", type=float, default=35)
    p.add_argument("--unet-batch", type=int, default=48)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--resume", action="store_true", help="vae, unet: start from the weights in --work")
    p.add_argument("--model", default="../../models/demo-scenes", help="restore: the folder to take up")
    return p.parse_args()


def build_text(vocab):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=TEXT,
            intermediate_size=4 * TEXT,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=SEQ,
            hidden_act="quick_gelu",
            projection_dim=TEXT,
            bos_token_id=vocab - 2,
            eos_token_id=vocab - 1,
            pad_token_id=vocab - 1,
        )
    )


def build_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=data.SIZE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=UNET_CH,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=HEADS,
        norm_num_groups=32,
    )


def plain_attention(unet):
    """For training only: torch's CPU flash attention has a slow backward at these sizes."""
    import torch

    class Plain:
        def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, temb=None, **kw):
            c = x if encoder_hidden_states is None else encoder_hidden_states
            b, n, d = x.shape
            h = attn.heads
            q = (attn.to_q(x) * attn.scale).view(b, n, h, -1).transpose(1, 2)
            k = attn.to_k(c).view(b, c.shape[1], h, -1).permute(0, 2, 3, 1)
            v = attn.to_v(c).view(b, c.shape[1], h, -1).transpose(1, 2)
            y = torch.matmul(torch.matmul(q, k).softmax(-1, dtype=q.dtype), v)
            return attn.to_out[0](y.transpose(1, 2).reshape(b, n, d))

    unet.set_attn_processor(Plain())


def stage_unet(o):
    parallel("train", "train_unet", o)


def train_unet(o, rank):
    """eps prediction, 10 % empty captions, loss weighted towards high noise, EMA. The text encoder learns along."""
    torch, rng = setup(o, 30, rank)
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from transformers import CLIPTokenizer

    tok = CLIPTokenizer.from_pretrained(f"{o.work}/tokenizer", model_max_length=SEQ)
    vocab = len(tok)
    unet, text = build_unet(), build_text(vocab)
    if o.resume:
        unet, text = type(unet).from_pretrained(f"{o.work}/unet_ema"), type(text).from_pretrained(f"{o.work}/text_ema")
    if rank == 0:
        print(
            "unet",
            sum(p.numel() for p in unet.parameters()) / 1e6,
            "M, text",
            sum(p.numel() for p in text.parameters()) / 1e6,
            "M",
            flush=True,
        )
    plain_attention(unet)
    unet.train(), text.train()
    L = torch.load(f"{o.work}/latents.pt")
    captions = json.load(open(f"{o.work}/captions.json"))[: len(L["mean"])]
    ids = torch.stack(
        [tok(c, padding="max_length", truncation=True, max_length=SEQ, return_tensors="pt").input_ids for c in captions]
    )
    empty = tok("", padding="max_length", max_length=SEQ, return_tensors="pt").input_ids[0]
    n = len(ids) - 64 * o.threads
    own, held = np.arange(n)[rank :: o.threads], torch.arange(n + 64 * rank, n + 64 * rank + 64)
    acp = DDPMScheduler(**BETAS).alphas_cumprod
    snr = acp / (1 - acp)
    weight = snr.clamp(
        min=0.005
    ).rsqrt()  # between the eps loss and the x0 loss: what the text says is decided at high noise
    weight = weight / weight.mean()
    params = list(unet.parameters()) + [p for p in text.parameters()]
    for p in params:
        p.grad = torch.zeros_like(p)
    ema = [p.detach().clone() for p in params]
    torch.manual_seed(o.seed * 1000 + rank)
    batch = o.unet_batch // o.threads
    tr = Trainer(o, params, o.unet_steps, o.unet_minutes, o.lr, 40 if o.resume else 100, 1e-2)
    log, run = [], []

    def eps_loss(i, t, noise, drop):
        z = (L["mean"][i].float() + L["std"][i].float() * torch.randn(len(i), 4, 16, 16)) * L["scale"]
        a = acp[t].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        c = ids[i, torch.randint(CAPTIONS, (len(i),))]
        c = torch.where(drop[:, None], empty, c)
        with torch.autocast("cpu", torch.bfloat16):
            y = unet(x, t, text(c).last_hidden_state, return_dict=False)[0]
        return F.mse_loss(y.float(), noise, reduction="none").mean((1, 2, 3))

    def swap():
        for p, e in zip(params, ema):
            p.data, e.data = e.data, p.data

    def save():
        swap()
        unet.save_pretrained(f"{o.work}/unet_ema.tmp")
        text.save_pretrained(f"{o.work}/text_ema.tmp")
        for k in ("unet_ema", "text_ema"):
            shutil.rmtree(f"{o.work}/{k}", ignore_errors=True)
            os.rename(f"{o.work}/{k}.tmp", f"{o.work}/{k}")
        swap()

    def evaluate():
        state = torch.get_rng_state()
        torch.manual_seed(5)
        swap()
        with torch.no_grad():
            t = torch.linspace(10, 990, 64).long()
            e = eps_loss(held, t, torch.randn(64, 4, 16, 16), torch.zeros(64, dtype=torch.bool))
        swap()
        torch.set_rng_state(state)
        return dict(held=round(float(e.mean()), 4), by_t=[round(float(x.mean()), 3) for x in e.view(4, 16)])

    while tr.done < 1:
        i = torch.from_numpy(rng.choice(own, batch, replace=False))
        t = (
            (((torch.arange(batch) + torch.rand(batch)) / batch) ** 0.75 * 1000).long().clamp(0, 999)
        )  # stratified, more high noise
        e = eps_loss(i, t, torch.randn(batch, 4, 16, 16), torch.rand(batch) < 0.1)
        tr.update((e * weight[t]).mean())
        run.append(float(e.mean()))
        decay = min(0.998, (1 + tr.step) / (20 + tr.step))
        with torch.no_grad():
            torch._foreach_lerp_(ema, [p.data for p in params], 1 - decay)
        if rank == 0 and (tr.step % 100 == 0 or tr.step == 10):
            log.append(
                dict(
                    step=tr.step,
                    s=round(time.time() - tr.t0),
                    loss=round(float(np.mean(run[-100:])), 4),
                    lr=round(tr.now, 6),
                    **evaluate(),
                )
            )
            print("unet", log[-1], flush=True)
            save()
            json.dump(log, open(f"{o.work}/unet_log.json", "w"))
    if rank == 0:
        save()
        print("unet end", tr.step, "steps", evaluate(), flush=True)


STAGES = {
    "data": prepare.stage_data,
    "tokenizer": prepare.stage_tokenizer,
    "vae": vae.stage_vae,
    "latents": vae.stage_latents,
    "unet": stage_unet,
    "decoder": vae.stage_decoder,
    "export": prepare.stage_export,
}

if __name__ == "__main__":
    o = arguments()
    os.makedirs(o.work, exist_ok=True)
    if o.stage == "restore":
        prepare.stage_restore(o)
    for name in STAGES if o.stage == "all" else [n for n in STAGES if n == o.stage]:
        t = time.time()
        STAGES[name](o)
        print(f"[{name}: {time.time() - t:.0f} s]", flush=True)
