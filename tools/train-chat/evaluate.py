"""Evaluate the chat model of models/demo-chat, in float16 and with round-to-nearest INT4 and INT8 weights.

    OMP_NUM_THREADS=1 python evaluate.py --model ../../models/demo-chat --out eval.json
    python evaluate.py --only fp16,"int4 g64"       # some variants only
    python evaluate.py --golden golden.json         # also prompts, greedy ids and top logits (tests/golden/demo_chat.json)

Needs torch, transformers and tokenizers from PyPI. INT4: symmetric, scale = absmax / 7 rounded to float16, groups of
64 or 32 along the input dimension. INT8: the same with absmax / 127. Arithmetic is float32, so only the weights differ.
"""

import argparse
import json
import math
import os
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import data
from train import chatml


def rtn(w, bits, group):
    n, k = w.shape
    q = 2 ** (bits - 1) - 1
    g = w.float().reshape(n, k // group, group)
    s = (g.abs().amax(-1, keepdim=True) / q).half().float()
    s = torch.where(s == 0, torch.ones_like(s), s)
    return ((g / s).round().clamp(-q, q) * s).reshape(n, k)


def quantise(model, bits, group, head):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "proj" in name or (head and "embed_tokens" in name):
                p.copy_(rtn(p, bits, group))
    return model


def load(path):
    m = LlamaForCausalLM.from_pretrained(path, dtype=torch.float16).float().eval()
    return m


@torch.no_grad()
def teacher(model, rows):
    """Log-probabilities at the positions that predict the reference answer."""
    out = []
    for ids, n in rows:
        lg = model(input_ids=torch.tensor([ids[:-1]])).logits[0, -n:]
        out.append(F.log_softmax(lg.float(), -1))
    return out


@torch.no_grad()
def greedy(model, prompts, limit):
    """Greedy replies, prompts of equal length decoded together."""
    out = [None] * len(prompts)
    order = {}
    for i, p in enumerate(prompts):
        order.setdefault(len(p), []).append(i)
    for L, idx in order.items():
        x = torch.tensor([prompts[i] for i in idx])
        past, cur = None, x
        res = [[] for _ in idx]
        done = [False] * len(idx)
        for step in range(limit):
            o = model(input_ids=cur, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = o.past_key_values
            nxt = o.logits[:, -1].argmax(-1)
            for j, t in enumerate(nxt.tolist()):
                if not done[j]:
                    if t in (0, 2):
                        done[j] = True
                    else:
                        res[j].append(t)
            if all(done):
                break
            cur = nxt[:, None]
        for j, i in enumerate(idx):
            out[i] = res[j]
    return out


GROUPS = {
    "arithmetic": ["add", "sub", "mul"],
    "sums in context": ["follow_sum", "word_problem"],
    "counting": ["count"],
    "calendar": ["calendar"],
    "opposites": ["opposite"],
    "animals/colours/kinds": ["animals", "colour_of", "is_a", "rhyme"],
    "letters/spelling": ["letters"],
    "sorting": ["sort"],
    "repeating": ["repeat"],
    "given facts": ["fact", "follow_fact", "where"],
    "memory": ["recall", "greet", "follow_story"],
    "identity": ["identity"],
    "does not know": ["unknown"],
    "story": ["story"],
    "picture prompts": ["picture", "follow_picture"],
}

FREE = [
    "Hello!",
    "Tell me a short story about a fox and a lamp.",
    "What is 7 plus 8?",
    "Tom has a red ball and Mia has a blue hat. What does Mia have?",
    "Suggest a picture.",
    "Who are you?",
    "Tell me a story about a robot and a violin on an island.",
    "Count from 5 to 12.",
    "Who won the world cup in 1998?",
    "I want a picture of a yellow tent at night.",
]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default="model")
    ap.add_argument("--heldout", default="heldout.jsonl")
    ap.add_argument("--out", default="eval.json")
    ap.add_argument("--only", default="")
    ap.add_argument("--golden", help="also write prompts, greedy ids and top logits of the unquantised model")
    a = ap.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tok = Tokenizer.from_file(f"{a.model}/tokenizer.json")
    rows = [json.loads(x) for x in open(a.heldout)]
    prompts = [tok.encode(chatml(x["messages"], True)).ids for x in rows]
    answers = [tok.encode(x["reference"] + "<|im_end|>").ids for x in rows]
    tf = [(p + y, len(y)) for p, y in zip(prompts, answers)]
    free = [tok.encode(chatml([dict(role="user", content=u)], True)).ids for u in FREE]

    if a.golden:
        m, g = load(a.model), []
        for u, ids, out in zip(FREE, free, greedy(m, free, 170)):
            with torch.no_grad():
                lg = m(input_ids=torch.tensor([ids])).logits[0, -1]
            v, i = lg.topk(8)
            g.append(
                dict(
                    user=u,
                    prompt_ids=ids,
                    greedy_ids=out,
                    text=tok.decode(out),
                    top_ids=i.tolist(),
                    top_logits=[round(x, 4) for x in v.tolist()],
                    logsumexp=round(lg.logsumexp(-1).item(), 4),
                )
            )
        with open(a.golden, "w") as f:
            json.dump(dict(note="fp16 weights, f32 arithmetic, no system turn, no BOS", cases=g), f, indent=1)
    configs = [("fp16", None)]
    for bits, group in ((8, 64), (8, 32), (4, 64), (4, 32)):
        configs += [(f"int{bits} g{group}", (bits, group, False)), (f"int{bits} g{group} +head", (bits, group, True))]
    if a.only:
        configs = [c for c in configs if c[0] in a.only.split(",")]
    res, base, base_gen, base_free = {}, None, None, None
    for name, c in configs:
        t = time.time()
        m = load(a.model)
        if c:
            quantise(m, *c)
        lp = teacher(m, tf)
        nll = sum(-l[torch.arange(len(y)), torch.tensor(y)].sum().item() for l, y in zip(lp, answers))
        gen = greedy(m, prompts, 170)
        fr = greedy(m, free, 170)
        if base is None:
            base, base_gen, base_free = lp, gen, fr
        kl = torch.cat([(b.exp() * (b - l)).sum(-1) for b, l in zip(base, lp)])
        top = torch.cat([b.argmax(-1) == l.argmax(-1) for b, l in zip(base, lp)])
        ok, by = [], {}
        for x, g in zip(rows, gen):
            k = data.mark(tok.decode(g), x["expect"], x["check"])
            ok.append(k)
            by.setdefault(x["skill"], []).append(k)
        same = [g == b for g, b in zip(gen, base_gen)]
        div = [
            next((i for i, (p, q) in enumerate(zip(g, b)) if p != q), min(len(g), len(b)))
            for g, b in zip(gen, base_gen)
            if g != b
        ]
        fdiv = [
            None if g == b else next((i for i, (p, q) in enumerate(zip(g, b)) if p != q), min(len(g), len(b)))
            for g, b in zip(fr, base_free)
        ]
        res[name] = dict(
            ppl=math.exp(nll / sum(map(len, answers))),
            tokens=sum(map(len, answers)),
            kl=kl.mean().item(),
            kl_max=kl.max().item(),
            top1=100 * top.float().mean().item(),
            acc=100 * sum(ok) / len(ok),
            same_text=100 * sum(same) / len(same),
            first_div_mean=sum(div) / len(div) if div else None,
            free_div=fdiv,
            free_len=[len(b) for b in base_free],
            groups={k: (sum(sum(by[s]) for s in v), sum(len(by[s]) for s in v)) for k, v in GROUPS.items()},
            skills={k: (sum(v), len(v)) for k, v in by.items()},
            wrong=[
                dict(skill=x["skill"], q=x["messages"][-1]["content"], want=x["reference"], got=tok.decode(g))
                for x, g, k in zip(rows, gen, ok)
                if not k
            ],
            free=[tok.decode(g) for g in fr],
            s=time.time() - t,
        )
        d = res[name]
        print(
            f"{name:14s} ppl {d['ppl']:.4f} kl {d['kl']:.5f} top1 {d['top1']:.2f}% acc {d['acc']:.1f}% same text {d['same_text']:.1f}% "
            f"first div {d['first_div_mean']} free {fdiv} {d['s']:.0f}s",
            flush=True,
        )
        print("   ", {k: f"{v[0]}/{v[1]}" for k, v in d["groups"].items()}, flush=True)
        json.dump(res, open(a.out, "w"), indent=1)


if __name__ == "__main__":
    main()
