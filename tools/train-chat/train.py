"""Train the chat model of models/demo-chat on a CPU: data, tokenizer and weights in one command.

    OMP_NUM_THREADS=1 python train.py --out model --steps 4000      # from nothing, about 50 minutes of one free core
    OMP_NUM_THREADS=1 python train.py --init ../../models/demo-chat --out model --steps 2000 --warm 20 \\
        --muon 2.2e-3 --lr 9e-4 --focus 0 --stream 3000             # go on from the shipped weights

Needs torch (2.9 or newer, for Muon), transformers, tokenizers and safetensors from PyPI; downloads no data. Writes a
Hugging Face folder (LlamaForCausalLM, float16). The text comes from data.py and nowhere else; the same seed gives
the same conversations. The shipped weights came from three such runs, see models/demo-chat/README.md.
"""

import argparse
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import data

EOT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chatml(messages, prompt=False):
    s = "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)
    return s + f"{IM_START}assistant\n" if prompt else s


def make_tokenizer(seed, vocab, out):
    """Byte-level BPE, each digit alone, trained on the generator's own text."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    r = random.Random(seed)
    text = (m["content"] for _ in range(12000) for m in data.conversation(r))
    roles = ["system\nuser\nassistant\n"] * 500
    tok.train_from_iterator(
        [*text, *roles],
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[EOT, IM_START, IM_END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    os.makedirs(out, exist_ok=True)
    tok.save(f"{out}/tokenizer.json")
    added = {
        str(i): dict(content=t, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
        for i, t in enumerate([EOT, IM_START, IM_END])
    }
    conf = dict(
        add_prefix_space=False,
        added_tokens_decoder=added,
        bos_token=IM_START,
        eos_token=IM_END,
        pad_token=EOT,
        unk_token=EOT,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=TEMPLATE,
        tokenizer_class="PreTrainedTokenizerFast",
    )
    with open(f"{out}/tokenizer_config.json", "w") as f:
        json.dump(conf, f, indent=2)
    return tok


def encode(tok, messages):
    """Token ids and loss weights: 1 on what the assistant says (0.5 in stories), 0.1 on user text, 0 on the frame."""
    pieces, w = [], []
    for m in messages:
        pieces += [f"{IM_START}{m['role']}\n", m["content"] + IM_END, "\n"]
        w += [0.0, {"assistant": 1.0, "user": 0.1}.get(m["role"], 0.0), 0.0]
    ids, ws = [], []
    for e, x in zip(tok.encode_batch(pieces), w):
        if x == 1.0 and len(e.ids) > 60:
            x = 0.5  # stories: half the weight, most of their loss is free choice
        ids += e.ids
        ws += [x] * len(e.ids)
    return ids, ws


def batch(tok, r, rows, length, focus=False):
    """Rows of packed conversations; each one sees only itself (block mask)."""
    X, W, D = [], [], []
    for _ in range(rows):
        ids, ws, doc, n = [], [], [], 0
        while len(ids) <= length:
            long = length > 256 and r.random() < 0.5
            i, w = encode(tok, data.conversation(r, r.randint(9, 24) if long else None, focus))
            ids += i
            ws += w
            doc += [n] * len(i)
            n += 1
        X.append(ids[: length + 1])
        W.append(ws[1 : length + 1])
        D.append(doc[:length])
    X, W, D = torch.tensor(X), torch.tensor(W), torch.tensor(D)
    mask = (D[:, None, :] == D[:, :, None]) & torch.ones(length, length, dtype=torch.bool).tril()
    return X[:, :-1], X[:, 1:], W, mask[:, None]


@torch.no_grad()
def perplexity(model, sets):
    """On assistant tokens only; sets is a list of (ids, weights)."""
    total, count = 0.0, 0
    for ids, w in sets:
        x = torch.tensor([ids])
        lg = model(input_ids=x[:, :-1]).logits.float()[0]
        k = torch.tensor(w[1:]) == 1.0
        total += F.cross_entropy(lg[k], x[0, 1:][k], reduction="sum").item()
        count += int(k.sum())
    return math.exp(total / count)


def save(model, out, dtype=torch.float16):
    """fp16 copy, written beside and then moved, so that a good file is always there."""
    from safetensors.torch import save_file

    sd = {k: v.detach().to(dtype).contiguous().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(sd, f"{out}/model.safetensors.tmp", metadata={"format": "pt"})
    os.replace(f"{out}/model.safetensors.tmp", f"{out}/model.safetensors")
    c = model.config.to_dict()
    conf = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        torch_dtype="float16",
        attention_bias=False,
        attention_dropout=0.0,
        mlp_bias=False,
        hidden_act="silu",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_theta=10000.0,
        rope_scaling=None,
        pretraining_tp=1,
        use_cache=True,
        initializer_range=0.02,
        **{
            k: c[k]
            for k in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "max_position_embeddings",
                "rms_norm_eps",
                "tie_word_embeddings",
            )
        },
    )
    with open(f"{out}/config.json", "w") as f:
        json.dump(conf, f, indent=2, sort_keys=True)
    with open(f"{out}/generation_config.json", "w") as f:
        json.dump(
            dict(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0, do_sample=False, max_new_tokens=200), f, indent=2
        )


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", default="model")
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--steps", type=int, default=4000)
    ap.add_argument("--minutes", type=float, default=1e9, help="end the schedule by then, even with fewer steps")
    ap.add_argument("--tokens", type=int, default=3072, help="tokens in one step")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--muon", type=float, default=5e-3, help="learning rate of Muon; 0: AdamW for everything")
    ap.add_argument("--focus", type=float, default=0.65, help="from this share of the run on, more of the hard skills")
    ap.add_argument("--warm", type=int, default=100, help="warm-up steps")
    ap.add_argument("--vocab", type=int, default=2048)
    ap.add_argument("--layers", type=int, default=6)
    ap.add_argument("--mlp", type=int, default=704)
    ap.add_argument("--compile", type=int, default=1)
    ap.add_argument("--log", default="train_log.jsonl")
    ap.add_argument("--stream", type=int, default=1, help="added to the seed of the data, for a part that goes on")
    ap.add_argument("--init", default="", help="a saved folder to go on from (weights only)")
    a = ap.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(a.seed)
    t0 = time.time()
    if a.init:
        tok = Tokenizer.from_file(f"{a.init}/tokenizer.json")
        os.makedirs(a.out, exist_ok=True)
        for f in ("tokenizer.json", "tokenizer_config.json"):
            with open(f"{a.init}/{f}") as i, open(f"{a.out}/{f}.tmp", "w") as o:
                o.write(i.read())
            os.replace(f"{a.out}/{f}.tmp", f"{a.out}/{f}")
        model = LlamaForCausalLM.from_pretrained(a.init, dtype=torch.float32)
    else:
        tok = make_tokenizer(a.seed, a.vocab, a.out)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=a.vocab,
                hidden_size=256,
                intermediate_size=a.mlp,
                num_hidden_layers=a.layers,
                num_attention_heads=8,
                num_key_value_heads=4,
                head_dim=32,
                max_position_embeddings=512,
                rms_norm_eps=1e-5,
                tie_word_embeddings=True,
                attn_implementation="sdpa",
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
    held = [encode(tok, x["messages"] + [dict(role="assistant", content=x["reference"])]) for x in data.heldout()]
    # only the last (held-out) answer counts
    held = [
        (ids, [1.0 if i >= len(ids) - n - 1 and i < len(ids) - 1 else 0.0 for i in range(len(ids))])
        for (ids, _), n in zip(held, [len(tok.encode(x["reference"]).ids) + 1 for x in data.heldout()])
    ]
    print(
        "parameters",
        sum(p.numel() for p in model.parameters()),
        "tokenizer",
        tok.get_vocab_size(),
        f"{time.time() - t0:.0f}s",
        flush=True,
    )

    # Muon for the projections (it needs about half the steps here), AdamW for the embedding and the norms
    proj = [p for n, p in model.named_parameters() if "proj" in n]
    embed = [p for n, p in model.named_parameters() if "embed" in n]
    norms = [p for n, p in model.named_parameters() if "norm" in n]
    adam = [dict(params=embed, weight_decay=0.1), dict(params=norms, weight_decay=0.0)]
    if a.muon:
        opts = [torch.optim.Muon(proj, lr=a.muon, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")]
    else:
        opts, adam = [], adam + [dict(params=proj, weight_decay=0.1)]
    opts.append(torch.optim.AdamW(adam, lr=a.lr, betas=(0.9, 0.95), fused=True))
    peak = [[g["lr"] for g in o.param_groups] for o in opts]
    body = torch.compile(model.model, dynamic=False) if a.compile else model.model
    r = random.Random(a.seed + a.stream)
    log = open(a.log, "w")
    seen, run, runw, t0 = 0, 0.0, 0.0, time.time()
    step = 0
    while True:
        p = max(step / a.steps, (time.time() - t0) / (a.minutes * 60))
        if p >= 1:
            break
        scale = min(1.0, (step + 1) / a.warm) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * p)))
        for o, pk in zip(opts, peak):
            for g, v in zip(o.param_groups, pk):
                g["lr"] = v * scale
        length = 512 if step % 4 == 3 else 256
        x, y, w, mask = batch(tok, r, a.tokens // length, length, p >= a.focus)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = body(input_ids=x, attention_mask=mask, use_cache=False).last_hidden_state
            k = w > 0
            logits = model.lm_head(h[k])
        ce = F.cross_entropy(logits.float(), y[k], reduction="none")
        wk = w[k]
        loss = (ce * wk).sum() / wk.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        seen += x.numel()
        with torch.no_grad():
            m = wk == 1.0
            run, runw = run + ce[m].sum().item(), runw + m.sum().item()
        step += 1
        if step % 50 == 0:
            rec = dict(
                step=step,
                loss=round(run / runw, 4),
                lr=round(a.lr * scale, 6),
                tokens=seen,
                s=round(time.time() - t0, 1),
            )
            run, runw = 0.0, 0.0
            if step % 250 == 0:
                rec["heldout_ppl"] = round(perplexity(model, held), 4)
                save(model, a.out)
            print(json.dumps(rec), flush=True)
            log.write(json.dumps(rec) + "\n")
            log.flush()
    save(model, a.out)
    rec = dict(
        step=step, tokens=seen, s=round(time.time() - t0, 1), heldout_ppl=round(perplexity(model, held), 4), done=True
    )
    print(json.dumps(rec), flush=True)
    log.write(json.dumps(rec) + "\n")


if __name__ == "__main__":
    main()
