"""Captioned toy landscapes: a deterministic generator and a pixel checker.

    sample(seed)           -> (PIL image 128x128, caption, attributes)
    check(image, attrs)    -> {'sky': bool, 'color': bool, 'side': bool, ...}
    python data.py --n 16  -> contact sheet + accuracy of the checker on true images

Every picture depends on its integer seed only. The palette is chosen so that
the spoken attributes can be read back from the pixels.
"""

import argparse
import math
import random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
SS = 3  # supersampling: drawn at 384, shrunk to 128

SKIES = ("day", "sunset", "night", "storm")
SKY_STOPS = {  # colours at the top, the middle and the horizon
    "day": ((58, 128, 222), (120, 180, 240), (196, 228, 248)),
    "sunset": ((126, 66, 122), (236, 112, 72), (255, 208, 124)),
    "night": ((8, 10, 34), (20, 26, 66), (52, 60, 108)),
    "storm": ((62, 66, 76), (104, 110, 120), (156, 160, 166)),
}
LIGHT = {  # multiplies the scenery / the objects
    "day": ((1.0, 1.0, 1.0), 1.0),
    "sunset": ((1.0, 0.80, 0.72), 0.97),
    "night": ((0.30, 0.34, 0.48), 0.80),
    "storm": ((0.68, 0.70, 0.74), 0.92),
}
COLORS = {
    "red": (206, 36, 40),
    "orange": (246, 136, 20),
    "yellow": (252, 220, 40),
    "green": (20, 138, 60),
    "blue": (34, 66, 206),
    "purple": (136, 50, 180),
    "pink": (248, 122, 184),
    "white": (246, 246, 242),
}
KINDS = ("house", "tree", "boat", "balloon", "lighthouse", "tent")
SIDES = ("left", "middle", "right")
SIDE_X = {"left": 24, "middle": 64, "right": 104}
GROUNDS = {
    "field": ((112, 178, 78), (64, 132, 52)),
    "desert": ((236, 206, 138), (206, 160, 92)),
    "sea": ((92, 160, 204), (30, 92, 150)),
}
MOUNTAINS = {"snowy": (116, 128, 150), "green": (84, 134, 96), "purple": (128, 104, 158)}


# ----------------------------------------------------------------- attributes
def draw_attrs(rng):
    sky = rng.choice(SKIES)
    ground = rng.choice(tuple(GROUNDS))
    kinds = ["boat", "lighthouse", "balloon"] if ground == "sea" else ["house", "tree", "tent", "lighthouse", "balloon"]
    if ground == "sea":
        kinds += ["boat"]
    n = 2 if rng.random() < 0.4 else 1
    objs, sides, colors = [], list(SIDES), list(COLORS)
    rng.shuffle(sides)
    rng.shuffle(colors)
    for i in range(n):
        kind = rng.choice(kinds)
        if i and kind == objs[0]["kind"]:
            kind = rng.choice(kinds)
        objs.append(dict(kind=kind, color=colors[i], side=sides[i], size=rng.choice(("small", "big"))))
    body = None
    if sky != "storm" and rng.random() < 0.75:
        taken = [o["side"] for o in objs if o["kind"] == "balloon"]
        body = rng.choice([s for s in SIDES if s not in taken])
    return dict(
        sky=sky,
        ground=ground,
        objects=objs,
        body=body,
        clouds=sky in ("day", "sunset") and rng.random() < 0.45,
        mountains=rng.choice((None, None, "snowy", "green", "purple")),
    )


# -------------------------------------------------------------------- caption
SKY_WORDS = {
    "day": ("by day", "under a blue sky", "on a sunny day"),
    "sunset": ("at sunset", "under an orange sky", "in the evening light"),
    "night": ("at night", "under the stars", "under a night sky"),
    "storm": ("in a storm", "under a grey sky", "on a stormy day"),
}
SKY_FIRST = {
    "day": ("day", "a sunny day", "blue sky"),
    "sunset": ("sunset", "an orange sky", "evening"),
    "night": ("night", "a night with stars", "night sky"),
    "storm": ("storm", "a grey sky", "stormy day"),
}
GROUND_WORDS = {
    "field": ("on a green field", "on the grass", "in a green meadow"),
    "desert": ("in a yellow desert", "on the sand", "in the desert"),
    "sea": ("on a calm sea", "on blue water", "on the sea"),
}
OVER_WORDS = {
    "field": ("over a green field", "above the grass", "over a green meadow"),
    "desert": ("over a yellow desert", "above the sand", "over the desert"),
    "sea": ("over a calm sea", "above blue water", "over the sea"),
}
SIZE_WORDS = {"small": ("small", "little"), "big": ("big", "large")}
SIDE_WORDS = {
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle", "in the center"),
    "right": ("on the right", "on the right side"),
}


def caption(a, rng, full=False):
    """One sentence. `full` speaks every scored attribute (for evaluation)."""

    def keep(p):
        return full or rng.random() < p

    def phrase(o):
        size = rng.choice(SIZE_WORDS[o["size"]]) + " " if keep(0.7) else ""
        side = " " + rng.choice(SIDE_WORDS[o["side"]]) if keep(0.85) else ""
        return f"a {size}{o['color']} {o['kind']}", side

    objs = list(a["objects"])
    rng.shuffle(objs)
    place_ok = keep(0.9)
    words = (OVER_WORDS if objs[0]["kind"] == "balloon" else GROUND_WORDS)[a["ground"]]
    place = " " + rng.choice(words) if place_ok else ""
    n0, s0 = phrase(objs[0])
    if len(objs) == 2:
        n1, s1 = phrase(objs[1])
        head = f"{n0}{s0} and {n1}{s1}{place}" if rng.random() < 0.5 else f"{n0}{s0}{place} and {n1}{s1}"
    else:
        head = f"{n0}{place}{s0}" if rng.random() < 0.5 else f"{n0}{s0}{place}"
    tail = []
    if a["mountains"] and keep(0.9):
        noun = rng.choice(("mountains", "hills")) if a["mountains"] == "green" else "mountains"
        tail.append(f"{a['mountains']} {noun} {rng.choice(('behind', 'far away'))}")
    if a["body"] and keep(0.85):
        tail.append(f"the {'moon' if a['sky'] == 'night' else 'sun'} {rng.choice(SIDE_WORDS[a['body']])}")
    if a["clouds"] and keep(0.85):
        tail.append(rng.choice(("white clouds", "some clouds")))
    rng.shuffle(tail)
    if rng.random() < 0.3:
        parts = [rng.choice(SKY_FIRST[a["sky"]]), head]
    else:
        parts = [head + " " + rng.choice(SKY_WORDS[a["sky"]])]
    return ", ".join(parts + tail)


# -------------------------------------------------------------------- drawing
def mul(c, l):
    l = (l, l, l) if isinstance(l, (int, float)) else l
    return tuple(int(max(0, min(255, x * y))) for x, y in zip(c, l))


def mix(a, b, t):
    return tuple(int(x + (y - x) * t) for x, y in zip(a, b))


def gradient(stops, h):
    t = np.linspace(0, len(stops) - 1, h)
    return np.stack([np.interp(t, range(len(stops)), [s[i] for s in stops]) for i in range(3)], -1)


def ridge(rng, n, rough):
    """Midpoint displacement, n = 2^k + 1 points in about [-1, 1]."""
    y = np.zeros(n)
    step, amp = n - 1, 1.0
    y[0], y[-1] = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)
    while step > 1:
        for i in range(step // 2, n, step):
            y[i] = (y[i - step // 2] + y[i + step // 2]) / 2 + rng.uniform(-amp, amp)
        step, amp = step // 2, amp * rough
    return y


def cloud(d, rng, x, y, w, fill):
    for _ in range(5):
        r = w * rng.uniform(0.16, 0.28)
        cx = x + rng.uniform(-0.36, 0.36) * w
        d.ellipse([cx - r * 1.3, y - r * rng.uniform(0.8, 1.2), cx + r * 1.3, y + r * 0.45], fill=fill)
    d.rounded_rectangle([x - w * 0.52, y - w * 0.03, x + w * 0.52, y + w * 0.12], radius=w * 0.07, fill=fill)


def draw_object(d, o, cx, base, u, lit, night):
    """u: unit length in supersampled pixels (about half the width of the object)."""
    c = mul(COLORS[o["color"]], lit)
    dark, light = mul(c, 0.80), mix(c, (255, 255, 255), 0.28)
    glow = (255, 226, 120) if night else mul((70, 84, 110), lit)
    k = o["kind"]
    if k == "house":
        d.rectangle([cx - u, base - 1.15 * u, cx + u, base], fill=c)
        d.rectangle([cx + 0.55 * u, base - 1.15 * u, cx + u, base], fill=dark)
        d.rectangle([cx + 0.45 * u, base - 2.05 * u, cx + 0.75 * u, base - 1.3 * u], fill=mul((120, 84, 74), lit))
        d.polygon(
            [(cx - 1.25 * u, base - 1.15 * u), (cx, base - 2.1 * u), (cx + 1.25 * u, base - 1.15 * u)],
            fill=mul((92, 60, 58), lit),
        )
        d.rectangle([cx - 0.2 * u, base - 0.7 * u, cx + 0.2 * u, base], fill=mul((84, 58, 44), lit))
        d.rectangle([cx - 0.8 * u, base - 0.85 * u, cx - 0.42 * u, base - 0.45 * u], fill=glow)
    elif k == "tree":
        d.rectangle([cx - 0.16 * u, base - 1.1 * u, cx + 0.16 * u, base], fill=mul((98, 66, 42), lit))
        for dx, dy, r, f in (
            (0.45, 1.35, 0.62, dark),
            (-0.45, 1.35, 0.62, c),
            (0.1, 1.5, 0.72, c),
            (0, 2.0, 0.68, c),
            (-0.2, 2.1, 0.34, light),
        ):
            d.ellipse([cx + (dx - r) * u, base - (dy + r) * u, cx + (dx + r) * u, base - (dy - r) * u], fill=f)
    elif k == "boat":
        d.polygon(
            [
                (cx - 1.25 * u, base - 0.55 * u),
                (cx + 1.25 * u, base - 0.55 * u),
                (cx + 0.85 * u, base + 0.1 * u),
                (cx - 0.85 * u, base + 0.1 * u),
            ],
            fill=mul((110, 70, 46), lit),
        )
        d.rectangle([cx - 0.07 * u, base - 2.5 * u, cx + 0.07 * u, base - 0.55 * u], fill=mul((70, 50, 40), lit))
        d.polygon(
            [(cx + 0.14 * u, base - 2.4 * u), (cx + 0.14 * u, base - 0.7 * u), (cx + 1.2 * u, base - 0.7 * u)], fill=c
        )
        d.polygon(
            [(cx - 0.14 * u, base - 2.2 * u), (cx - 0.14 * u, base - 0.7 * u), (cx - 0.95 * u, base - 0.7 * u)],
            fill=dark,
        )
    elif k == "balloon":  # base is the centre of the envelope
        d.polygon(
            [
                (cx - 0.75 * u, base + 0.6 * u),
                (cx + 0.75 * u, base + 0.6 * u),
                (cx + 0.24 * u, base + 1.35 * u),
                (cx - 0.24 * u, base + 1.35 * u),
            ],
            fill=dark,
        )
        d.ellipse([cx - u, base - u, cx + u, base + u], fill=c)
        d.ellipse([cx - 0.36 * u, base - u, cx + 0.36 * u, base + u], fill=light)
        d.rectangle([cx - 0.22 * u, base + 1.5 * u, cx + 0.22 * u, base + 1.85 * u], fill=mul((120, 80, 50), lit))
    elif k == "lighthouse":
        d.ellipse([cx - 1.1 * u, base - 0.3 * u, cx + 1.1 * u, base + 0.3 * u], fill=mul((92, 88, 86), lit))
        d.polygon(
            [
                (cx - 0.55 * u, base),
                (cx - 0.36 * u, base - 2.6 * u),
                (cx + 0.36 * u, base - 2.6 * u),
                (cx + 0.55 * u, base),
            ],
            fill=c,
        )
        d.polygon(
            [
                (cx + 0.2 * u, base),
                (cx + 0.14 * u, base - 2.6 * u),
                (cx + 0.36 * u, base - 2.6 * u),
                (cx + 0.55 * u, base),
            ],
            fill=dark,
        )
        d.rectangle(
            [cx - 0.3 * u, base - 3.05 * u, cx + 0.3 * u, base - 2.6 * u],
            fill=(255, 240, 150) if night else mul((255, 236, 160), lit),
        )
        d.polygon(
            [(cx - 0.48 * u, base - 3.05 * u), (cx, base - 3.5 * u), (cx + 0.48 * u, base - 3.05 * u)],
            fill=mul((60, 56, 64), lit),
        )
    else:  # tent
        d.polygon([(cx - 1.3 * u, base), (cx, base - 1.75 * u), (cx + 1.3 * u, base)], fill=c)
        d.polygon([(cx + 0.35 * u, base), (cx, base - 1.75 * u), (cx + 1.3 * u, base)], fill=dark)
        d.polygon(
            [(cx - 0.38 * u, base), (cx, base - 1.3 * u), (cx + 0.35 * u, base)],
            fill=(255, 226, 120) if night else mul((64, 52, 50), lit),
        )


UNIT = {
    "house": (7.5, 12),
    "tree": (7.5, 12),
    "boat": (8, 12.5),
    "balloon": (8, 13),
    "lighthouse": (8, 12),
    "tent": (8, 13),
}


def render(a, rng):
    S = SIZE * SS
    sky, night = a["sky"], a["sky"] == "night"
    tint, lit = LIGHT[sky]
    hor = int(rng.uniform(76, 84) * SS)
    img = np.zeros((S, S, 3))
    img[:hor] = gradient(SKY_STOPS[sky], hor)[:, None]
    g0, g1 = (mul(c, tint) for c in GROUNDS[a["ground"]])
    if a["ground"] == "sea":  # water takes some of the colour of the horizon
        g0 = mix(g0, SKY_STOPS[sky][2], 0.35 if sky != "night" else 0.2)
    img[hor:] = gradient((g0, g1), S - hor)[:, None]
    im = Image.fromarray(img.astype(np.uint8))
    d = ImageDraw.Draw(im)
    if night:
        for _ in range(rng.randint(16, 26)):
            x, y, r = rng.uniform(0, S), rng.uniform(0, hor * 0.85), rng.uniform(0.5, 1.0) * SS
            d.ellipse([x - r, y - r, x + r, y + r], fill=mix((150, 160, 200), (255, 255, 240), rng.random()))
    if a["body"]:
        x = (SIDE_X[a["body"]] + rng.uniform(-5, 5)) * SS
        y = (rng.uniform(46, 60) if sky == "sunset" else rng.uniform(14, 26)) * SS
        r = rng.uniform(8.5, 10.5) * SS
        if sky == "night":
            d.ellipse([x - r, y - r, x + r, y + r], fill=(240, 238, 214))
            for dx, dy, q in ((-0.3, -0.2, 0.22), (0.35, 0.25, 0.16), (-0.05, 0.5, 0.13)):
                d.ellipse(
                    [x + (dx - q) * r, y + (dy - q) * r, x + (dx + q) * r, y + (dy + q) * r], fill=(214, 210, 188)
                )
        else:
            core, halo = ((255, 236, 120), (255, 246, 190)) if sky == "day" else ((255, 96, 52), (255, 160, 90))
            mask = Image.new("L", (S, S), 0)
            ImageDraw.Draw(mask).ellipse([x - 1.4 * r, y - 1.4 * r, x + 1.4 * r, y + 1.4 * r], fill=110)
            im.paste(Image.new("RGB", (S, S), halo), mask=mask)
            d.ellipse([x - r, y - r, x + r, y + r], fill=core)
    if a["clouds"] or sky == "storm":
        fill = {"day": (250, 252, 255), "sunset": (255, 196, 168), "storm": (84, 88, 98)}[sky]
        for i in range(rng.randint(2, 3) if sky != "storm" else rng.randint(4, 5)):
            w = rng.uniform(24, 40) * SS * (1.3 if sky == "storm" else 1)
            cloud(
                d,
                rng,
                rng.uniform(0.05, 0.95) * S,
                rng.uniform(12, 48) * SS,
                w,
                mix(fill, (50, 52, 60), rng.uniform(0, 0.5)) if sky == "storm" else fill,
            )
    if a["mountains"]:
        y = ridge(rng, 33, 0.52)
        top = hor - (18 + 11 * (y - y.mean()) / max(1e-6, np.abs(y - y.mean()).max())) * SS
        xs = np.linspace(0, S, 33)
        base = mix(mul(MOUNTAINS[a["mountains"]], tint), SKY_STOPS[sky][2], 0.12)
        d.polygon([(0, hor)] + list(zip(xs, top)) + [(S, hor)], fill=base)
        if a["mountains"] == "snowy":
            line = hor - 19 * SS
            white = mul((240, 244, 250), {"night": 0.62, "storm": 0.84, "sunset": (1.0, 0.9, 0.88), "day": 1.0}[sky])
            fine = np.linspace(0, S, 129)
            t = np.interp(fine, xs, top)
            jag = np.array([rng.uniform(-2, 2) * SS for _ in fine])
            low = np.maximum(t, np.minimum(line + jag, t + 13 * SS))
            d.polygon(list(zip(fine, t)) + list(zip(fine[::-1], low[::-1])), fill=white)
    if a["ground"] == "sea":
        for _ in range(12):
            x, y, w = rng.uniform(0, S), hor + rng.uniform(0.1, 0.95) * (S - hor), rng.uniform(5, 12) * SS
            d.rounded_rectangle(
                [x - w, y - 0.5 * SS, x + w, y + 0.5 * SS],
                radius=SS * 0.5,
                fill=mix(mix(g0, g1, (y - hor) / (S - hor)), (255, 255, 255), 0.16),
            )
    elif a["ground"] == "field":
        for _ in range(40):
            x, y = rng.uniform(0, S), hor + rng.uniform(0.1, 0.98) * (S - hor)
            d.line([x, y, x + rng.uniform(-1, 1) * SS, y - 2.6 * SS], fill=mul(g1, 0.85), width=SS)
    else:
        y0, ph = hor + 14 * SS, rng.uniform(0, 6.28)
        pts = [(x, y0 + 6 * SS * math.sin(ph + x / S * rng.choice((5.0,)))) for x in range(0, S + 1, 6)]
        d.polygon([(0, S)] + pts + [(S, S)], fill=mix(g1, g0, 0.35))
    for o in sorted(a["objects"], key=lambda o: o["kind"] == "balloon"):
        small, big = UNIT[o["kind"]]
        u = (small if o["size"] == "small" else big) * rng.uniform(0.93, 1.07) * SS
        x = (SIDE_X[o["side"]] + rng.uniform(-6, 6)) * SS
        y = rng.uniform(30, 44) * SS if o["kind"] == "balloon" else rng.uniform(98, 110) * SS
        if o["kind"] not in ("balloon",):  # soft shadow
            d.ellipse([x - 1.25 * u, y - 0.12 * u, x + 1.25 * u, y + 0.22 * u], fill=mul(g1, 0.8))
        draw_object(d, o, x, y, u, lit, night)
    return im.resize((SIZE, SIZE), Image.BOX)


def sample(seed, full=False):
    rng = random.Random(seed)
    a = draw_attrs(rng)
    text = caption(a, random.Random(seed * 2 + 1), full)
    return render(a, rng), text, a


# -------------------------------------------------------------------- checker
BAND = {
    "house": (72, 110),
    "tree": (66, 104),
    "boat": (68, 108),
    "balloon": (16, 62),
    "lighthouse": (58, 110),
    "tent": (76, 110),
}
_SKYREF = {s: gradient(SKY_STOPS[s], 80)[2:44] for s in SKIES}
_THIRD = {"left": (2, 46), "middle": (42, 86), "right": (82, 126)}


def measure_sky(img):
    """Nearest sky by the per-row median colour of the upper third (objects and clouds are outliers)."""
    rows = np.median(np.asarray(img, np.float32)[2:44], axis=1)
    return min(SKIES, key=lambda s: float(np.abs(rows - _SKYREF[s]).mean()))


def colour_maps(img, sky):
    """Per palette colour: pixels whose nearest palette entry it is, and close to it."""
    x = np.asarray(img, np.float32)
    lit = LIGHT[sky][1]
    names = list(COLORS)
    ref = np.stack([[np.array(COLORS[n]) * lit * k for k in (1.0, 0.80)] for n in names])  # colour, shade, rgb
    dist = np.abs(x[:, :, None, None] - ref).max(-1).min(-1)
    near = dist.argmin(-1)
    return {n: (near == i) & (dist[..., i] < 34) for i, n in enumerate(names)}


def measure_object(img, kind, sky, others=()):
    """(colour, side) of the strongest blob of a palette colour in the band where `kind` lives.

    Scenery is nearly the same along a row, an object is not: a colour is scored by its count in
    one third minus the mean count in the other two."""
    y0, y1 = BAND[kind]
    best = (-1, None, None)
    for name, m in colour_maps(img, sky).items():
        counts = {s: int(m[y0:y1, a:b].sum()) for s, (a, b) in _THIRD.items()}
        for s in SIDES:
            if (name, s) in others:
                continue
            score = counts[s] - sum(counts[t] for t in SIDES if t != s) / 2
            if score > best[0]:
                best = (score, name, s)
    return best


def check(img, a):
    """Spoken attributes against pixels. Objects are matched in the order of their score."""
    sky = measure_sky(img)
    out = dict(sky=sky == a["sky"])
    col, side = [], []
    for o in a["objects"]:
        other = [(p["color"], p["side"]) for p in a["objects"] if p is not o]
        score, c, s = measure_object(img, o["kind"], a["sky"], other)
        ok = score >= 20
        col.append(ok and c == o["color"])
        side.append(ok and s == o["side"])
    out["color"] = sum(col) / len(col)
    out["side"] = sum(side) / len(side)
    out["all"] = out["sky"] and out["color"] == 1 and out["side"] == 1
    return out


def sheet(images, cols=8, pad=2):
    w, h = images[0].size
    rows = -(-len(images) // cols)
    s = Image.new("RGB", (cols * (w + pad) + pad, rows * (h + pad) + pad), (255, 255, 255))
    for i, im in enumerate(images):
        s.paste(im, (pad + (i % cols) * (w + pad), pad + (i // cols) * (h + pad)))
    return s


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--n", type=int, default=32)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", default="data_sheet.png")
    args = p.parse_args()
    S = [sample(args.seed + i) for i in range(args.n)]
    sheet([s[0] for s in S[:32]]).save(args.out)
    for s in S[:6]:
        print(s[1])
    R = [check(im, a) for im, _, a in S]
    print({k: round(float(np.mean([r[k] for r in R])), 4) for k in R[0]}, "over", len(R))
