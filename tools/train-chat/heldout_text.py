"""The held-out conversations as one text, as the model was trained on them:
    python tools/train-chat/heldout_text.py > heldout.txt
for `inknib perplexity -f heldout.txt`."""
import json
import pathlib
import sys

rows = [json.loads(line) for line in open(pathlib.Path(__file__).with_name("heldout.jsonl"))]
turns = [row["messages"] + [{"role": "assistant", "content": row["reference"]}] for row in rows]
text = ["".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row) for row in turns]
sys.stdout.write("<|endoftext|>".join(text))
