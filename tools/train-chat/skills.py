"""Skills of the chat generator, first half: greetings, small talk, sums, counting, the calendar, words and letters.

Each skill takes (r, st, held): the random source, the state of the conversation (so that follow-ups can use earlier
turns) and which side of the hold-out to draw from. It returns (user, reply, expect, check); expect and check say how
data.mark marks a reply: "num" = last number, "text" = contains the words, "start" = first word, "case" = contains
with case, "whole" = equal, None = not marked.
"""

from chance import an, cap, draw, is_held, name, thing
from stories import s_picture, s_story
from words import (
    ANIMALS,
    BABY,
    CANDO,
    COLORS,
    COLOR_OF,
    DAYS,
    HELLO,
    IDENTITY,
    LEGS,
    MONTHS,
    NAMES,
    NUMW,
    OPPOSITE,
    SOUND,
    SPELL,
    TALK,
    THINGS,
)


def s_greet(r, st, held):
    h = r.choice(HELLO)
    if "name" not in st and r.random() < 0.35:
        _, n, h = draw(held, lambda: ("greet", name(r), r.choice(HELLO)))
        st["name"] = n
        u = r.choice([f"{h}, I am {n}.", f"{h}! My name is {n}.", f"{h}, I'm {n}.", f"{h}, my name is {n}!"])
        return u, r.choice([f"Hello {n}! How can I help you?", f"Nice to meet you, {n}!"]), n, "text"
    e = r.choice(["", "!", ".", "!", " inknib!"])
    part = next((p for p in ("morning", "evening", "afternoon") if p in h), None)
    a = (
        f"Good {part}! How can I help you?"
        if part
        else r.choice(["Hello! How can I help you?", "Hi! What can I do for you?", "Hello! Nice to meet you."])
    )
    if "name" in st:
        a = f"Hello again, {st['name']}!"
    return h + e, a, None, None


def s_talk(r, st, held):
    qs, as_ = r.choice(TALK)
    return r.choice(qs), r.choice(as_), None, None


def s_identity(r, st, held):
    qs, as_ = IDENTITY if r.random() < 0.65 else CANDO
    a = r.choice(as_)
    return r.choice(qs), a, ("inknib" if qs is IDENTITY[0] else "short"), "text"


def _sum(r, st, a, op, b, style=None):
    res = {"+": a + b, "-": a - b, "*": a * b}[op]
    st["num"] = res
    w = {"+": "plus", "-": "minus", "*": "times"}[op]
    sym = {"+": "+", "-": "-", "*": r.choice(["*", "x"])}[op]
    t = style if style is not None else r.randrange(10)
    if t == 0:
        u = f"What is {a} {w} {b}?"
    elif t == 1:
        u = f"{a} {sym} {b}"
    elif t == 2:
        u = f"What is {a} {sym} {b}?"
    elif t == 3:
        u = f"{a}{sym}{b}="
    elif t == 4:
        u = f"{cap(NUMW[a])} {w} {NUMW[b]}?"
    elif t == 5:
        u = f"How much is {a} {w} {b}?"
    elif t == 6:
        u = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}[op]
    elif t == 7:
        u = f"Can you calculate {a} {sym} {b}?"
    elif t == 8:
        u = f"{a}{sym}{b}?"
    else:
        u = f"{a} {w} {b}"
    return u, f"{a} {w} {b} is {res}.", str(res), "num"


def s_add(r, st, held):
    _, a, op, b = draw(held, lambda: ("sum", r.randint(0, 20), "+", r.randint(0, 20)))
    return _sum(r, st, a, op, b)


def s_sub(r, st, held):
    def mk():
        a, b = r.randint(0, 20), r.randint(0, 20)
        return ("sum", max(a, b), "-", min(a, b))

    _, a, op, b = draw(held, mk)
    return _sum(r, st, a, op, b)


def s_mul(r, st, held):
    _, a, op, b = draw(held, lambda: ("sum", r.randint(0, 10), "*", r.randint(0, 10)))
    return _sum(r, st, a, op, b)


def s_follow_sum(r, st, held):
    """Use the last result: 'and plus 3?'"""
    n = st.get("num")
    if n is None or n > 20:
        return s_add(r, st, held)
    for _ in range(300):
        b = r.randint(1, 9)
        op = r.choice("+-") if n >= b else "+"
        if held is None or is_held("sum", n, op, b) == held or held:
            break
    res = n + b if op == "+" else n - b
    w = "plus" if op == "+" else "minus"
    u = r.choice(
        [f"And {w} {b}?", f"Now {'add' if op == '+' else 'take away'} {b}.", f"{cap(w)} {b}?", f"And {w} {b} more?"]
    )
    st["num"] = res
    return u, f"{n} {w} {b} is {res}.", str(res), "num"


def s_too_big(r, st, held):
    """Numbers outside what it has learned: say so."""
    _, a, b = draw(
        held,
        lambda: (
            "big",
            r.choice([r.randint(21, 99), r.randint(21, 99), r.randint(100, 9999)]),
            r.choice([r.randint(2, 20), r.randint(21, 99), r.randint(100, 9999)]),
        ),
    )
    if r.random() < 0.3:
        a, b = b, a
    op = r.choice("++--*")
    u, _, _, _ = _sum(r, {}, a, op, b, r.choice([0, 1, 2, 3, 5, 6, 7, 8, 9]))
    if r.random() < 0.15:
        u = r.choice([f"What is {a} divided by {b}?", f"{a} / {b}", f"Divide {a} by {b}."])
        return u, "I cannot divide. I am a very small model.", "cannot divide", "text"
    return u, "Those numbers are too big for me. I can only do small sums.", "too big", "text"


def s_yes_no(r, st, held):
    """Answer to what the assistant has just offered or asked."""
    last = st.get("last", "")
    yes = r.random() < 0.7
    u = (
        r.choice(["Yes.", "Yes, please.", "yes please", "Sure.", "Okay.", "Yes!", "Of course."])
        if yes
        else r.choice(["No.", "No, thanks.", "no thank you", "Not now.", "No, thank you."])
    )
    if not yes:
        return (
            u,
            r.choice(["All right. What would you like to do?", "No problem. Just ask me when you want something."]),
            None,
            None,
        )
    if "a story?" in last or "short story?" in last:
        return u, s_story(r, st, held)[1], None, None
    if "picture idea?" in last:
        return u, "Gladly. Which one: a story, a sum or a picture idea?", None, None
    return u, "Good. What would you like to do?", None, None


def s_again(r, st, held):
    """One more of the same."""
    k = st.get("kind")
    if k in ("story", "follow_story"):
        return (
            r.choice(["Another story, please.", "Tell me another story.", "Another one!", "One more.", "Again!"]),
            s_story(r, st, held)[1],
            None,
            None,
        )
    if k in ("picture", "follow_picture"):
        return (
            r.choice(["Another one.", "Another picture, please.", "One more.", "A different one."]),
            s_picture(r, st, held)[1],
            None,
            None,
        )
    if k == "talk" and st.get("joke"):
        jokes = next(a for q, a in TALK if "Tell me a joke." in q)
        return (
            r.choice(["Another one!", "Another joke, please.", "One more."]),
            r.choice([j for j in jokes if j != st["last"]]),
            None,
            None,
        )
    return s_story(r, st, held)


def s_word_problem(r, st, held):
    _, n, t, a, b, op = draw(
        held, lambda: ("wp", name(r), r.choice(THINGS[:20]), r.randint(2, 10), r.randint(1, 9), r.choice("+-"))
    )
    if op == "-" and b >= a:
        a, b = b + 1, a
    t = t.replace("box", "boxe") + "s" if t != "box" else "boxes"
    if op == "+":
        u = r.choice(
            [
                f"{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
                f"{n} has {a} {t}. {n} finds {b} more. How many are there?",
                f"If {n} has {a} {t} and buys {b} more, how many {t} are there?",
            ]
        )
    else:
        u = r.choice(
            [
                f"{n} has {a} {t} and gives away {b}. How many {t} are left?",
                f"{n} has {a} {t}. {n} loses {b}. How many {t} does {n} have now?",
                f"If {n} has {a} {t} and sells {b}, how many are left?",
            ]
        )
    res = a + b if op == "+" else a - b
    st["num"] = res
    return u, f"{a} {'plus' if op == '+' else 'minus'} {b} is {res}, so {n} has {res} {t}.", str(res), "num"


def s_count(r, st, held):
    t = r.randrange(5)
    if t < 2:
        _, a, k = draw(held, lambda: ("count", r.randint(0, 18), r.randint(3, 10)))
        if t == 0:
            a, k = 1, (k if held is None or not held else k)
            b = a + k - 1
            u = r.choice([f"Count to {b}.", f"Can you count to {b}?", f"Count up to {b}.", f"Count from 1 to {b}."])
        else:
            b = a + k - 1
            u = r.choice(
                [f"Count from {a} to {b}.", f"Can you count from {a} to {b}?", f"Numbers from {a} to {b}, please."]
            )
        s = ", ".join(str(i) for i in range(a, b + 1))
        return u, s + ".", s, "text"
    if t == 2:
        _, b = draw(None, lambda: ("down", r.randint(3, 10)))
        s = ", ".join(str(i) for i in range(b, 0, -1))
        return (
            r.choice([f"Count down from {b}.", f"Count backwards from {b}.", f"Count from {b} to 1."]),
            s + ".",
            s,
            "text",
        )
    _, n, d = draw(held, lambda: ("next", r.randint(1, 60), r.choice([1, -1])))
    if d == 1:
        u = r.choice(
            [f"What comes after {n}?", f"Which number comes after {n}?", f"What is the next number after {n}?"]
        )
        return u, f"After {n} comes {n + 1}.", str(n + 1), "num"
    u = r.choice([f"What comes before {n}?", f"Which number comes before {n}?", f"What number is before {n}?"])
    return u, f"Before {n} comes {n - 1}.", str(n - 1), "num"


def s_calendar(r, st, held):
    t = r.randrange(12)
    if t == 0:
        return (
            r.choice(["How many days are in a week?", "How many days does a week have?"]),
            "A week has 7 days.",
            "7",
            "num",
        )
    if t == 1:
        return (
            r.choice(["How many months are in a year?", "How many months does a year have?"]),
            "A year has 12 months.",
            "12",
            "num",
        )
    if t == 2:
        return (
            r.choice(["Name the days of the week.", "What are the days of the week?", "List the days."]),
            ", ".join(DAYS) + ".",
            ", ".join(DAYS),
            "text",
        )
    if t == 3:
        return (
            r.choice(["Name the months.", "What are the months of the year?", "List the months of the year."]),
            ", ".join(MONTHS) + ".",
            ", ".join(MONTHS),
            "text",
        )
    if t == 4:
        i, w = r.choice(list(enumerate("first second third fourth fifth sixth".split())))
        if r.random() < 0.5:
            return (f"What is the {w} day of the week?", f"The {w} day of the week is {DAYS[i]}.", DAYS[i], "text")
        return f"What is the {w} month of the year?", f"The {w} month of the year is {MONTHS[i]}.", MONTHS[i], "text"
    if t == 5:
        return (
            r.choice(["What are the seasons?", "Name the four seasons.", "Which seasons are there?"]),
            "Spring, summer, autumn and winter.",
            "spring, summer, autumn and winter",
            "text",
        )
    seq, kind = (DAYS, "day") if r.random() < 0.45 else (MONTHS, "month")
    forms = [
        "What {k} comes after {x}?",
        "Which {k} is after {x}?",
        "What comes after {x}?",
        "What {k} follows {x}?",
        "{x} is followed by which {k}?",
        "What {k} comes before {x}?",
        "Which {k} is before {x}?",
        "What comes before {x}?",
    ]
    _, x, f = draw(held, lambda: ("cal", r.choice(seq), r.randrange(len(forms))))
    i = seq.index(x)
    after = f < 5
    y = seq[(i + (1 if after else -1)) % len(seq)]
    return forms[f].format(k=kind, x=x), f"{'After' if after else 'Before'} {x} comes {y}.", y, "text"


def s_opposite(r, st, held):
    forms = [
        "What is the opposite of {w}?",
        "Opposite of {w}?",
        "Tell me the opposite of {w}.",
        "What's the opposite of {w}?",
        "Which word is the opposite of {w}?",
        'Give me the opposite of "{w}".',
        "opposite of {w}",
        "Do you know the opposite of {w}?",
    ]
    _, w, f = draw(held, lambda: ("opp", r.choice(list(OPPOSITE)), r.randrange(len(forms))))
    o = OPPOSITE[w]
    return forms[f].format(w=w), f"The opposite of {w} is {o}.", o, "text"


def s_animals(r, st, held):
    t = r.randrange(8)
    if t < 4:
        forms = [
            "What sound does {a} make?",
            "What does {a} say?",
            "Which sound does {a} make?",
            "How does {a} sound?",
            "Make the sound of {a}.",
            "Tell me the sound of {a}.",
        ]
        _, a, f = draw(held, lambda: ("sound", r.choice(list(SOUND)), r.randrange(len(forms))))
        s = SOUND[a]
        return forms[f].format(a=an(a)), f"{cap(an(a))} says {s}.", s, "text"
    if t < 6:
        forms = [
            "What is a baby {a} called?",
            "What do you call a baby {a}?",
            "Name of a young {a}?",
            "What is a young {a} called?",
        ]
        _, a, f = draw(held, lambda: ("baby", r.choice(list(BABY)), r.randrange(len(forms))))
        return forms[f].format(a=a), f"A baby {a} is called {an(BABY[a])}.", BABY[a], "text"
    forms = [
        "How many legs does {a} have?",
        "How many legs has {a}?",
        "Number of legs of {a}?",
        "Tell me how many legs {a} has.",
    ]
    _, a, f = draw(held, lambda: ("legs", r.choice(list(LEGS)), r.randrange(len(forms))))
    n = LEGS[a]
    return (
        forms[f].format(a=an(a)),
        f"{cap(an(a))} has {'no' if n == '0' else n} legs.",
        "no" if n == "0" else n,
        "text",
    )


def s_color_of(r, st, held):
    forms = [
        "What colour is {x}?",
        "What color is {x}?",
        "Which colour is {x}?",
        "What is the colour of {x}?",
        "Tell me the colour of {x}.",
        "Which color does {x} have?",
    ]
    _, x, f = draw(held, lambda: ("colour", r.choice(list(COLOR_OF)), r.randrange(len(forms))))
    return forms[f].format(x=x), f"{cap(x)} is {COLOR_OF[x]}.", COLOR_OF[x], "text"


ABC = "abcdefghijklmnopqrstuvwxyz"


def s_letters(r, st, held):
    t = r.randrange(7)
    if t < 2:
        forms = [
            "What is the capital letter of {c}?",
            "Write {c} as a capital letter.",
            "Make {c} a capital letter.",
            "Capital letter for {c}?",
            "What is {c} in capitals?",
            "How do I write {c} as a capital?",
        ]
        _, c, f = draw(held, lambda: ("cap", r.choice(ABC), r.randrange(len(forms))))
        return forms[f].format(c=c), f"The capital letter of {c} is {c.upper()}.", f"is {c.upper()}", "case"
    if t == 2:
        forms = ["Which letter comes after {c}?", "What letter comes after {c}?", "What is the next letter after {c}?"]
        _, c, f = draw(held, lambda: ("nextl", r.choice(ABC[:-1].upper()), r.randrange(len(forms))))
        n = ABC.upper()[ABC.upper().index(c) + 1]
        return forms[f].format(c=c), f"After {c} comes {n}.", f"comes {n}", "case"
    if t < 5:
        forms = ["Spell {w}.", "How do you spell {w}?", "Can you spell the word {w}?", "Spell the word {w}, please."]
        _, w, f = draw(held, lambda: ("spell", r.choice(SPELL), r.randrange(len(forms))))
        s = "-".join(w.upper())
        return forms[f].format(w=w), f"{s}.", s, "text"
    if t == 5:
        forms = ["What is the first letter of {w}?", "Which letter does {w} start with?", "First letter of {w}?"]
        _, w, f = draw(held, lambda: ("firstl", r.choice(SPELL), r.randrange(len(forms))))
        return forms[f].format(w=w), f"The first letter of {w} is {w[0].upper()}.", f"is {w[0].upper()}", "case"
    forms = ["What is the last letter of {w}?", "Which letter does {w} end with?", "Last letter of {w}?"]
    _, w, f = draw(held, lambda: ("lastl", r.choice(SPELL), r.randrange(len(forms))))
    return forms[f].format(w=w), f"The last letter of {w} is {w[-1].upper()}.", f"is {w[-1].upper()}", "case"


def s_sort(r, st, held):
    hi = r.choice([9, 20, 20, 50, 99])
    _, a, b, c = draw(held, lambda: ("sort", *r.sample(range(hi + 1), 3)))
    t = r.randrange(6)
    L = [a, b, c]
    if t < 3:
        u = r.choice(
            [
                f"Sort {a}, {b}, {c}.",
                f"Sort these numbers: {a}, {b}, {c}",
                f"Put {a}, {b} and {c} in order.",
                f"Sort the numbers {a}, {b} and {c}.",
                f"Order {a} {b} {c} from small to big.",
            ]
        )
        s = ", ".join(map(str, sorted(L)))
        return u, s + ".", s, "text"
    if t < 5:
        big = r.random() < 0.5
        w = r.choice(["biggest", "largest"]) if big else "smallest"
        u = r.choice(
            [
                f"Which is the {w}: {a}, {b} or {c}?",
                f"What is the {w} number of {a}, {b} and {c}?",
                f"Find the {w} of {a}, {b}, {c}.",
            ]
        )
        res = max(L) if big else min(L)
        return u, f"The {w} is {res}.", str(res), "num"
    u = r.choice([f"Is {a} bigger than {b}?", f"Is {a} more than {b}?"])
    return (
        u,
        (f"Yes, {a} is bigger than {b}." if a > b else f"No, {a} is smaller than {b}."),
        "Yes" if a > b else "No",
        "start",
    )


def s_repeat(r, st, held):
    words = THINGS + ANIMALS + COLORS
    t = r.randrange(5)
    if t < 2:
        _, w, k = draw(held, lambda: ("rep", thing(r, words), r.randint(2, 5)))
        u = r.choice(
            [
                f"Say {w} {NUMW[k]} times.",
                f"Repeat {w} {k} times.",
                f"Repeat the word {w} {NUMW[k]} times.",
                f"Write {w} {k} times.",
            ]
        )
        s = " ".join([w] * k)
        return u, s + ".", s, "whole"
    if t == 2:
        _, w, f = draw(held, lambda: ("say", thing(r, words + NAMES), r.randrange(4)))
        u = [f"Say {w}.", f"Repeat the word {w}.", f"Repeat after me: {w}", f'Please say "{w}".'][f]
        return u, cap(w) + ".", w, "text"
    if t == 3:
        _, a, b, c = draw(held, lambda: ("rep3", *r.sample(words, 2), thing(r, words)))
        u = r.choice([f"Repeat: {a}, {b}, {c}", f"Repeat after me: {a} {b} {c}", f"Say these words: {a}, {b}, {c}"])
        s = f"{a}, {b}, {c}"
        return u, s + ".", s, "text"
    _, c, o, n = draw(held, lambda: ("repsent", r.choice(COLORS), thing(r, THINGS), name(r)))
    s = r.choice([f"{n} has {an(c)} {o}", f"the {o} of {n} is {c}", f"I see {an(c)} {o} and {n}"])
    s = cap(s)
    return r.choice([f"Repeat after me: {s}.", f"Say this: {s}.", f"Repeat this sentence: {s}."]), s + ".", s, "text"
