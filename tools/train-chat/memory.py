"""Skills of the chat generator, second half: given facts, kinds, rhymes, memory, and what it does not know."""

from chance import an, cap, draw, made_up, name, thing
from skills import s_talk
from words import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLORS,
    FOODS,
    IS_A,
    KIND1,
    KINDS,
    NUMW,
    PETNAMES,
    REFUSE,
    REFUSE_DO,
    RHYME,
    THINGS,
    U_DO,
    U_HOW,
    U_WHAT,
    U_WHO,
    U_WHY,
)


def s_fact(r, st, held):
    """Read two or three facts and answer about one of them."""
    k = r.choice([2, 2, 2, 3, 1])

    def mk():
        return ("fact", name(r), r.choice(COLORS), thing(r, THINGS))

    trip = []
    while len(trip) < k:
        _, n, c, o = draw(held, mk)
        if all(n != x[0] and c != x[1] and o != x[2] for x in trip):
            trip.append((n, c, o))
    verb = r.choice(["has", "has", "has", "holds", "wants", "found", "bought"])
    base = {"has": "have", "holds": "hold", "wants": "want", "found": "find", "bought": "buy"}[verb]
    aux = "did" if verb in ("found", "bought") else "does"
    parts = [f"{n} {verb} {an(c)} {o}" for n, c, o in trip]
    if r.random() < 0.6 or k == 1:
        text = (", ".join(parts[:-1]) + " and " + parts[-1] if k > 1 else parts[0]) + "."
    else:
        text = ". ".join(parts) + "."
    n, c, o = r.choice(trip)
    t = r.randrange(8)
    if t < 3:
        q, a, e, ch = f"What {aux} {n} {base}?", f"{n} {verb} {an(c)} {o}.", f"{c} {o}", "text"
    elif t == 3:
        q, a, e, ch = f"Who {verb} the {o}?", f"{n} {verb} the {o}.", n, "text"
    elif t == 4:
        q, a, e, ch = r.choice([f"What colour is the {o}?", f"What color is the {o}?"]), f"The {o} is {c}.", c, "text"
    elif t == 5:
        q, a, e, ch = f"Who {verb} {'something'} {c}?", f"{n} {verb} the {c} {o}.", n, "text"
    else:
        yes = r.random() < 0.5
        o2 = (
            o
            if yes or k == 1 and r.random() < 0.0
            else r.choice([x[2] for x in trip if x[0] != n] or [x for x in THINGS if x != o])
        )
        q = f"{cap(aux)} {n} {base} the {o2}?"
        a = f"Yes, {n} {verb} the {o2}." if o2 == o else f"No, {n} {verb} the {o}."
        e, ch = ("Yes" if o2 == o else "No"), "start"
    st["fact"] = (trip, verb, base, aux, n)
    return f"{text} {q}", a, e, ch


def s_follow_fact(r, st, held):
    f = st.get("fact")
    if not f or len(f[0]) < 2:
        return s_fact(r, st, held)
    trip, verb, base, aux, last = f
    n, c, o = r.choice([x for x in trip if x[0] != last])
    st["fact"] = (trip, verb, base, aux, n)
    if r.random() < 0.6:
        return (
            r.choice([f"And what {aux} {n} {base}?", f"And {n}?", f"What about {n}?"]),
            f"{n} {verb} {an(c)} {o}.",
            f"{c} {o}",
            "text",
        )
    return f"And who {verb} the {o}?", f"{n} {verb} the {o}.", n, "text"


def s_where(r, st, held):
    spots = [
        "on the table",
        "under the bed",
        "in the box",
        "behind the door",
        "in the garden",
        "on the chair",
        "in the kitchen",
        "near the window",
        "on the roof",
        "under the tree",
    ]
    k = r.choice([1, 2, 2, 3])
    got = []
    while len(got) < k:
        _, o, p = draw(held, lambda: ("where", thing(r, THINGS + ANIMALS), r.choice(spots)))
        if all(o != x[0] and p != x[1] for x in got):
            got.append((o, p))
    parts = [f"the {o} is {p}" for o, p in got]
    text = (
        cap(
            ", ".join(parts[:-1]) + " and " + parts[-1]
            if k > 1 and r.random() < 0.5
            else ". ".join(cap(x) for x in parts)
        )
        + "."
    )
    o, p = r.choice(got)
    if r.random() < 0.7:
        return f"{text} Where is the {o}?", f"The {o} is {p}.", p, "text"
    return f"{text} What is {p}?", f"The {o} is {p}.", o, "text"


def s_isa(r, st, held):
    t = r.randrange(4)
    if t < 2:
        _, x, k = draw(
            held, lambda: ("isa", r.choice(IS_A)[0], r.choice(KIND1)) if r.random() < 0.5 else ("isa", *r.choice(IS_A))
        )
        true = dict(IS_A)[x]
        if x in ("owl", "duck", "crow") and k == "animal":
            true = "animal"
        u = r.choice([f"Is {an(x)} {an(k)}?", f"Is the {x} {an(k)}?", f"Would you call {an(x)} {an(k)}?"])
        a = f"Yes, {an(x)} is {an(k)}." if k == true else f"No, {an(x)} is {an(true)}."
        return u, a, "Yes" if k == true else "No", "start"
    if t == 2:
        kind = r.choice(list(KINDS))
        n = r.choice([2, 3, 3, 3, 4])
        w = r.sample(KINDS[kind], n)
        u = r.choice(
            [
                f"Name {NUMW[n]} {kind}.",
                f"Tell me {NUMW[n]} {kind}.",
                f"Can you name {n} {kind}?",
                f"Give me {n} {kind}.",
            ]
        )
        return u, cap(", ".join(w[:-1]) + " and " + w[-1]) + ".", None, None
    forms = [
        "What is the capital of {c}?",
        "Capital of {c}?",
        "Which city is the capital of {c}?",
        "Tell me the capital of {c}.",
    ]
    _, c, f = draw(held, lambda: ("capital", r.choice(list(CAPITALS)), r.randrange(len(forms))))
    return forms[f].format(c=c), f"The capital of {c} is {CAPITALS[c]}.", CAPITALS[c], "text"


def s_rhyme(r, st, held):
    forms = [
        "What rhymes with {w}?",
        "Give me a word that rhymes with {w}.",
        "A rhyme for {w}?",
        "Which word rhymes with {w}?",
    ]
    _, w, f = draw(held, lambda: ("rhyme", r.choice(list(RHYME)), r.randrange(len(forms))))
    return forms[f].format(w=w), f"{cap(RHYME[w])} rhymes with {w}.", RHYME[w], "text"


MEM = {
    "name": (
        name,
        ["My name is {v}.", "I am {v}.", "I'm {v}.", "You can call me {v}.", "Please call me {v}."],
        ["Nice to meet you, {v}!", "Hello {v}! How can I help you?"],
        ["What is my name?", "What's my name?", "Do you know my name?", "Who am I?", "Do you remember my name?"],
        "Your name is {v}.",
        "You have not told me your name yet.",
    ),
    "colour": (
        lambda r: r.choice(COLORS),
        ["My favourite colour is {v}.", "I like the colour {v}.", "I love {v}."],
        ["{V} is a lovely colour.", "I will remember that you like {v}."],
        ["What is my favourite colour?", "Which colour do I like?", "Do you remember my favourite colour?"],
        "You like {v}.",
        "You have not told me your favourite colour yet.",
    ),
    "pet": (
        lambda r: (r.choice(ANIMALS[:12]), r.choice(PETNAMES) if r.random() < 0.75 else cap(made_up(r))),
        ["I have {aw} called {n}.", "My {w} is called {n}.", "I have {aw}. Its name is {n}."],
        ["{n} is a nice name for {aw}.", "Say hello to {n} from me!"],
        ["What is my {w} called?", "What is the name of my {w}?", "Do you remember the name of my {w}?"],
        "Your {w} is called {n}.",
        "You have not told me that yet.",
    ),
    "age": (
        lambda r: r.randint(5, 60),
        ["I am {v} years old.", "I'm {v}.", "I am {v}."],
        ["{v} is a good age.", "Thank you, I will remember that you are {v}."],
        ["How old am I?", "What is my age?", "Do you remember how old I am?"],
        "You are {v} years old.",
        "You have not told me your age yet.",
    ),
    "city": (
        lambda r: r.choice(CITIES) if r.random() < 0.7 else cap(made_up(r)),
        ["I live in {v}.", "My home is in {v}.", "I am from {v}."],
        ["{v} sounds like a lovely place.", "How nice, {v}!"],
        ["Where do I live?", "Which city do I live in?", "Do you remember where I live?"],
        "You live in {v}.",
        "You have not told me where you live yet.",
    ),
    "food": (
        lambda r: r.choice(FOODS),
        ["I like {v}.", "I love to eat {v}.", "My favourite food is {v}."],
        ["{V}, very tasty!", "I will remember that you like {v}."],
        ["What do I like to eat?", "What is my favourite food?", "Which food do I like?"],
        "You like {v}.",
        "You have not told me your favourite food yet.",
    ),
}


def _mem(s, v):
    if isinstance(v, tuple):
        return s.format(w=v[0], aw=an(v[0]), n=v[1])
    return s.format(v=v, V=cap(str(v)))


def s_tell(r, st, held):
    k = r.choice(["name", "name", "name", "colour", "pet", "age", "city", "food"])
    forms = MEM[k][1]
    _, f, v = draw(held, lambda: ("mem" + k, r.randrange(len(forms)), MEM[k][0](r)))
    st[k] = v
    u, a = _mem(forms[f], v), _mem(r.choice(MEM[k][2]), v)
    if k == "name" and r.random() < 0.15:
        u = u[:-1] + ". What is my name?"
        a = _mem(MEM[k][4], v)
    return u, a, None, None


def s_recall(r, st, held):
    told = [k for k in MEM if k in st]
    if told and r.random() < 0.93:
        k = r.choice(told)
        v = st[k]
        e = v[1] if isinstance(v, tuple) else str(v)
        return _mem(r.choice(MEM[k][3]), v), _mem(MEM[k][4], v), e, "text"
    k = r.choice([k for k in MEM if k not in st and k != "pet"] or ["pet"])
    if k in st:
        return s_talk(r, st, held)
    return r.choice(MEM[k][3]), MEM[k][5], MEM[k][5][:17], "text"


def s_unknown(r, st, held):
    t = r.randrange(9)
    if t < 2:
        _, x, f = draw(held, lambda: ("uwho", r.choice(U_WHO), r.randrange(3)))
        u = ["Who {x}?", "Do you know who {x}?", "Can you tell me who {x}?"][f].format(x=x)
    elif t < 4:
        _, x, f = draw(held, lambda: ("uwhat", r.choice(U_WHAT), r.randrange(5)))
        u = ["What is {x}?", "Do you know {x}?", "Tell me about {x}.", "Explain {x}.", "What can you say about {x}?"][
            f
        ].format(x=x)
    elif t < 6:
        _, x, f = draw(held, lambda: ("uhow", r.choice(U_HOW), r.randrange(2)))
        u = ["How {x}?", "Can you tell me how {x}?"][f].format(x=x)
    elif t == 6:
        _, x, f = draw(held, lambda: ("uwhy", r.choice(U_WHY), r.randrange(2)))
        u = ["Why {x}?", "Tell me why {x}."][f].format(x=x)
    elif t == 7:
        return r.choice(U_DO), REFUSE_DO, "very small model", "text"
    else:
        # made-up words, so that "not known" does not depend on a list
        _, w = draw(held, lambda: ("uword", made_up(r)))
        w = r.choice([w, cap(w)])
        u = r.choice(
            [
                f"What is {w}?",
                f"Who is {w}?",
                f"Tell me about {w}.",
                f"Where is {w}?",
                f"What does {w} mean?",
                f"When was {w} founded?",
                f"What is the capital of {cap(w)}?",
                f"What is the opposite of {w}?",
            ]
        )
    return u, REFUSE, "do not know", "text"
