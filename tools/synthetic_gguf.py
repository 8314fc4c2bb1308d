#!/usr/bin/env python3
"""A folder of synthetic_llm.py as one GGUF file in F16, for llama.cpp, so that both are measured on the same shapes.

usage: synthetic_gguf.py FOLDER OUT.gguf

Then `llama-quantize --pure OUT.gguf MODEL-Q4_0.gguf Q4_0`, and `llama-bench -m MODEL-Q4_0.gguf`, or benches/gpu.sh with GGUF_DIR.
Needs numpy and gguf from PyPI. Queries and keys keep the order of Hugging Face's rotate_half, which changes what the model says (noise)
and not how fast; the vocabulary is numbers, which llama-bench never reads."""
import json
import os
import sys

import gguf
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def renamed(name):
    stem, kind = name.rsplit(".", 1)
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def describe(writer, c):
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    head = c.get("head_dim", c["hidden_size"] // heads)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(c["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([str(i) for i in range(c["vocab_size"])])
    writer.add_token_scores([0.0] * c["vocab_size"])
    writer.add_token_types([gguf.TokenType.NORMAL] * c["vocab_size"])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = sys.argv[1:]
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    path = os.path.join(folder, "model.safetensors")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", 8 + length)
    writer = gguf.GGUFWriter(out + ".part", config["model_type"])
    describe(writer, config)
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        values = data[begin:end].view(np.float16).reshape(tensor["shape"])
        # llama.cpp wants norms and biases in F32.
        writer.add_tensor(renamed(name), values.astype(np.float32) if values.ndim == 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(out + ".part", out)
    print(out)


if __name__ == "__main__":
    main()
