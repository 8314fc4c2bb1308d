#!/usr/bin/env python3
"""Language models of true shapes with random weights, to measure speed and memory without a download.

usage: synthetic_llm.py NAME OUTDIR     NAME: smollm2-135m, tinyllama-1.1b, qwen2.5-0.5b, llama-3.2-1b, llama-3.1-8b
       (16 GB), or smol (seconds)

Writes config.json and model.safetensors (FP16, N(0, 0.02); norms 1, biases 0) under OUTDIR. Needs nothing but Python.
The files are valid checkpoints; what such a model writes is noise, so use `inknib bench`, not `chat`."""
import json
import math
import os
import random
import struct
import sys


SHAPES = {
    "tinyllama-1.1b": dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=32000, hidden_size=2048,
        intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False),
    "qwen2.5-0.5b": dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=151936, hidden_size=896,
        intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=True),
    "llama-3.2-1b": dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=128256, hidden_size=2048,
        intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8192)),
    "smollm2-135m": dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=49152, hidden_size=576,
        intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True),
    "llama-3.1-8b": dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=128256, hidden_size=4096,
        intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=False),
    "smol": dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=1024, hidden_size=256,
        intermediate_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True),
}

# Numbers that are drawn; matrices repeat them.
BLOCK = 1 << 21


def tensors(c):
    """Names and shapes in the order of the file."""
    h, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    d = c.get("head_dim", h // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    yield "model.embed_tokens.weight", (v, h)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", (h,)
        for name, n, k in [("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)]:
            yield f"{at}self_attn.{name}_proj.weight", (n, k)
            if c["model_type"] == "qwen2" and name != "o":
                yield f"{at}self_attn.{name}_proj.bias", (n,)
        yield at + "post_attention_layernorm.weight", (h,)
        yield at + "mlp.gate_proj.weight", (f, h)
        yield at + "mlp.up_proj.weight", (f, h)
        yield at + "mlp.down_proj.weight", (h, f)
    yield "model.norm.weight", (h,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (v, h)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    config, out = SHAPES[sys.argv[1]], sys.argv[2]
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors(config):
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = random.Random(20)
    normal = struct.pack(f"<{BLOCK}e", *(numbers.gauss(0, 0.02) for _ in range(BLOCK)))
    path = os.path.join(out, "model.safetensors")
    with open(path + ".part", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(config):
            if len(shape) == 1:
                value = 0.0 if name.endswith("bias") else 1.0
                file.write(struct.pack("<e", value) * shape[0])
                continue
            left = 2 * math.prod(shape)
            while left > 0:
                # The block again and again, each time from another place on.
                part = normal[2 * numbers.randrange(BLOCK // 2):][:left]
                file.write(part)
                left -= len(part)
    os.replace(path + ".part", path)
    print(f"{path}: {offset / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
