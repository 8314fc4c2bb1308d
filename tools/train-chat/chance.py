"""Chance and word helpers of the chat generator: the hold-out rule, articles, made-up words.

Hold-out: every combination (name x object x colour, the two operands of a sum, template x word, hero x thing ...) is
hashed; 1 in 20 is never used for training and is the only kind used for evaluation.
"""

import hashlib

from words import NAMES

HOLD = 20  # one combination in HOLD is held out


def is_held(*key):
    h = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return h[0] * 256 + h[1] < 65536 // HOLD


def draw(held, make, limit=4000):
    """Sample make() until the combination falls on the wanted side."""
    for _ in range(limit):
        k = make()
        if held is None or is_held(*k) == held:
            return k
    raise RuntimeError(f"no combination on that side: {k!r}")


def an(w):
    return ("an " if w[0] in "aeiou" else "a ") + w


def cap(s):
    return s[0].upper() + s[1:]


def made_up(r, lo=2, hi=3):
    """A word nobody has seen, so that copying is learned for any word."""
    syl = lambda: (
        r.choice("b c d f g h k l m n p r s t v w z br st tr ch sh".split())
        + r.choice("aeiou")
        + r.choice(["", "", "n", "r", "l", "s", "k", "m", "t"])
    )
    return "".join(syl() for _ in range(r.randint(lo, hi)))


def name(r):
    return r.choice(NAMES) if r.random() < 0.8 else cap(made_up(r))


def thing(r, words):
    return r.choice(words) if r.random() < 0.9 else made_up(r)
