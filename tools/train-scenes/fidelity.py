"""Mark pictures by the demo model's own pixel checker.

    python fidelity.py prompts 64 > prompts.txt
    python fidelity.py mark out --seeds 2 fp16 int4 ...

`prompts` prints prompts that speak every attribute. `mark` reads out/NAME/000.png ... as
`cargo run --release --example evaluate` writes them, --seeds pictures for each of those prompts, and prints which share of them
shows the sky, the colours and the sides that were asked for. Needs numpy and pillow from PyPI."""

import argparse
import glob
import os

import numpy as np
from PIL import Image

import data

SEED = 1


def attributes(count):
    """As evaluate.py draws them: text, attributes."""
    return [data.sample(900_000_000 + SEED * 1000 + i, full=True)[1:3] for i in range(count)]


def mark(folder, name, seeds):
    files = sorted(glob.glob(os.path.join(folder, name, "*.png")))
    asked = [a for _, a in attributes(len(files) // seeds) for _ in range(seeds)]
    marks = [data.check(np.asarray(Image.open(f).convert("RGB"), np.float64), a) for f, a in zip(files, asked)]
    shares = {key: float(np.mean([m[key] for m in marks])) for key in marks[0]}
    print(f"{name:24}", len(marks), *(f"{key} {value:.3f}" for key, value in shares.items()))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=["prompts", "mark"])
parser.add_argument("where", help="how many prompts, or the folder")
parser.add_argument("names", nargs="*")
parser.add_argument("--seeds", type=int, default=2)
args = parser.parse_args()
if args.what == "prompts":
    for text, _ in attributes(int(args.where)):
        print(text)
else:
    for name in args.names or sorted(os.listdir(args.where)):
        if os.path.isdir(os.path.join(args.where, name)):
            mark(args.where, name, args.seeds)
