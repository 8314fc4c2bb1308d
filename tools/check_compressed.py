#!/usr/bin/env python3
"""A compressed-tensors export of `inknib quantize` in transformers: does it load, and does it predict as inknib says?

usage: inknib quantize -m models/demo-chat -o chat-ct --form compressed-tensors --weights int4-g32-uniform
       python tools/train-chat/heldout_text.py > heldout.txt
       python tools/check_compressed.py chat-ct heldout.txt 20
       inknib perplexity -m chat-ct -f heldout.txt --chunks 20

Prints the perplexity over the first documents (cut at <|endoftext|>), to be held against inknib's. Needs torch, transformers and
compressed-tensors from PyPI."""
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text, count = sys.argv[1], open(sys.argv[2], encoding="utf-8").read(), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
print(type(model).__name__, sum(p.numel() for p in model.parameters()), "parameters as they are held")
loss, tokens = 0.0, 0
for document in text.split("<|endoftext|>")[:count]:
    # As inknib: trimmed, behind the token for a beginning.
    ids = tokenizer(document.strip(), add_special_tokens=False, return_tensors="pt").input_ids
    if tokenizer.bos_token_id is not None:
        ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    loss -= logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
    tokens += ids.shape[1] - 1
print(f"perplexity {math.exp(loss / tokens):.5f} over {tokens} tokens")
