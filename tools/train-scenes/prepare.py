"""Stages around the training: pictures and captions, the tokenizer, taking up shipped weights, and the export."""

import json
import os
import random
import re
import shutil
from collections import Counter
from multiprocessing import get_context

import numpy as np

import data
from common import BETAS, CAPTIONS, SEQ


def _make(job):
    start, end, seed = job
    imgs = np.empty((end - start, data.SIZE, data.SIZE, 3), np.uint8)
    texts, attrs = [], []
    for i in range(start, end):
        im, text, a = data.sample(seed * 1_000_000 + i)
        imgs[i - start] = np.asarray(im)
        texts.append([text] + [data.caption(a, random.Random(f"{seed}/{i}/{k}")) for k in range(1, CAPTIONS)])
        attrs.append(a)
    return imgs, texts, attrs


def stage_data(o):
    n, w = o.images, 256
    jobs = [(s, min(n, s + w), o.seed) for s in range(0, n, w)]
    arr = np.lib.format.open_memmap(f"{o.work}/images.npy", "w+", np.uint8, (n, data.SIZE, data.SIZE, 3))
    texts = []
    with get_context("fork").Pool(o.threads) as pool:
        for (s, e, _), (im, tx, _) in zip(jobs, pool.imap(_make, jobs)):
            arr[s:e] = im
            texts += tx
    arr.flush()
    json.dump(texts, open(f"{o.work}/captions.json", "w"))
    print("data:", n, "pictures,", len({t for x in texts for t in x}), "different captions")


def stage_tokenizer(o):
    """CLIP's byte-level BPE trained on the captions: bytes, bytes</w>, merges, the two special tokens."""
    from transformers import CLIPTokenizer

    words = Counter(
        w for x in json.load(open(f"{o.work}/captions.json")) for t in x for w in re.findall(r"[a-z]+|[^\sa-z]+", t)
    )
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    split = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while len(merges) < 510:
        pairs = Counter()
        for w, n in words.items():
            for p in zip(split[w], split[w][1:]):
                pairs[p] += n
        if not pairs:
            break
        (a, b), _ = min(pairs.items(), key=lambda kv: (-kv[1], kv[0]))
        merges.append((a, b))
        for w, s in split.items():
            i = 0
            while i < len(s) - 1:
                if (s[i], s[i + 1]) == (a, b):
                    s[i : i + 2] = [a + b]
                i += 1
    tokens = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(tokens)}
    d = f"{o.work}/tokenizer"
    tok = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=SEQ)
    tok.save_pretrained(d)  # tokenizer.json and tokenizer_config.json
    json.dump(vocab, open(f"{d}/vocab.json", "w", encoding="utf-8"), ensure_ascii=False)
    with open(f"{d}/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    json.dump(special, open(f"{d}/special_tokens_map.json", "w"), indent=1)
    tok = CLIPTokenizer.from_pretrained(d)
    slow = CLIPTokenizer(vocab=f"{d}/vocab.json", merges=f"{d}/merges.txt", model_max_length=SEQ)
    text = "night, a small white house on a green field, the moon on the left"
    assert tok(text).input_ids == slow(text).input_ids
    longest = max(len(tok(x[0]).input_ids) for x in json.load(open(f"{o.work}/captions.json"))[:2000])
    print("tokenizer:", len(tokens), "tokens,", len(merges), "merges, longest caption", longest, tok(text).input_ids)


def stage_restore(o):
    """Put the float16 weights of a diffusers folder into --work as float32, where `unet --resume` looks for them."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    for kind, part, name in (
        (UNet2DConditionModel, "unet", "unet_ema"),
        (CLIPTextModel, "text_encoder", "text_ema"),
        (AutoencoderKL, "vae", "vae"),
    ):
        kind.from_pretrained(o.model, subfolder=part).to(torch.float32).save_pretrained(f"{o.work}/{name}")
    shutil.copytree(f"{o.model}/tokenizer", f"{o.work}/tokenizer", dirs_exist_ok=True)


def stage_export(o):
    """A diffusers folder in half precision, laid out as Stable Diffusion 1.5."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    vae = AutoencoderKL.from_pretrained(f"{o.work}/vae")
    vae.register_to_config(scaling_factor=round(float(torch.load(f"{o.work}/latents.pt")["scale"]), 6))
    tok = CLIPTokenizer.from_pretrained(f"{o.work}/tokenizer", model_max_length=SEQ)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(f"{o.work}/text_ema"),
        tokenizer=tok,
        unet=UNet2DConditionModel.from_pretrained(f"{o.work}/unet_ema"),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16)
    tmp = o.out.rstrip("/") + ".tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    pipe.save_pretrained(tmp, safe_serialization=True)
    for f in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        shutil.copy(f"{o.work}/tokenizer/{f}", f"{tmp}/tokenizer/{f}")
    for part in ("unet", "vae", "text_encoder"):
        c = json.load(open(f"{tmp}/{part}/config.json"))
        c.pop("_name_or_path", None)
        json.dump(c, open(f"{tmp}/{part}/config.json", "w"), indent=2, sort_keys=True)
    shutil.rmtree(o.out, ignore_errors=True)
    os.rename(tmp, o.out)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(o.out) for f in fs)
    print("export:", round(size / 1e6, 2), "MB in", o.out)
