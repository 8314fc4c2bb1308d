"""Procedural ChatML conversations for the chat model in models/demo-chat.

    python data.py --seed 1 --count 5            # look at a few conversations
    python data.py --heldout heldout.jsonl       # write the evaluation set again

Everything is generated from the word lists and templates of this folder: no downloaded text. The same seed always
gives the same conversations. Needs Python 3.9 or newer and nothing else.
"""

import argparse
import json
import random
import re

from chance import name
from memory import MEM, s_fact, s_follow_fact, s_isa, s_recall, s_rhyme, s_tell, s_unknown, s_where
from skills import (
    s_add,
    s_again,
    s_animals,
    s_calendar,
    s_color_of,
    s_count,
    s_follow_sum,
    s_greet,
    s_identity,
    s_letters,
    s_mul,
    s_opposite,
    s_repeat,
    s_sort,
    s_sub,
    s_talk,
    s_too_big,
    s_word_problem,
    s_yes_no,
)
from stories import s_follow_picture, s_follow_story, s_picture, s_story
from words import SYS_MAIN, SYS_OTHER

SKILLS = {  # name: (function, weight while training)
    "greet": (s_greet, 4),
    "talk": (s_talk, 9),
    "identity": (s_identity, 4),
    "add": (s_add, 9),
    "sub": (s_sub, 8),
    "mul": (s_mul, 5),
    "follow_sum": (s_follow_sum, 4),
    "word_problem": (s_word_problem, 4),
    "count": (s_count, 4),
    "calendar": (s_calendar, 5),
    "opposite": (s_opposite, 6),
    "animals": (s_animals, 5),
    "colour_of": (s_color_of, 3),
    "letters": (s_letters, 6),
    "sort": (s_sort, 6),
    "repeat": (s_repeat, 5),
    "too_big": (s_too_big, 2),
    "yes_no": (s_yes_no, 2),
    "again": (s_again, 2),
    "fact": (s_fact, 9),
    "follow_fact": (s_follow_fact, 4),
    "where": (s_where, 5),
    "is_a": (s_isa, 4),
    "rhyme": (s_rhyme, 2),
    "tell": (s_tell, 7),
    "recall": (s_recall, 9),
    "unknown": (s_unknown, 8),
    "story": (s_story, 6),
    "follow_story": (s_follow_story, 2),
    "picture": (s_picture, 6),
    "follow_picture": (s_follow_picture, 3),
}
NAMES_S = list(SKILLS)
WEIGHTS = [SKILLS[k][1] for k in NAMES_S]
# the last part of training: more of what is hard, less of what is easy
FOCUS = dict(
    add=1.6,
    sub=1.6,
    mul=1.5,
    follow_sum=2,
    sort=2,
    fact=1.7,
    follow_fact=2.5,
    where=1.5,
    tell=1.6,
    recall=1.6,
    follow_picture=2,
    follow_story=2,
    repeat=1.3,
    story=0.6,
    again=0.4,
    talk=0.6,
    greet=0.6,
    identity=0.6,
    unknown=0.6,
    picture=0.8,
)
WEIGHTS_FOCUS = [SKILLS[k][1] * FOCUS.get(k, 1) for k in NAMES_S]
KEEP_CASE = {"letters"}  # questions where lower-casing would change the meaning


FIRST = (
    "what which who where how why tell count sort give name say write suggest repeat spell add is can do does".split()
)


def noise(r, skill, u):
    """People do not always type capitals and full stops."""
    x = r.random()
    if x < 0.14 and skill not in KEEP_CASE:
        u = u.lower()
    if r.random() < 0.16 and u[-1] in "?.!":
        u = u[:-1]
    x = r.random()
    if x < 0.03:
        u = (
            "Please " + u[0].lower() + u[1:]
            if u.split()[0]
            in ("Tell", "Count", "Sort", "Give", "Name", "Say", "Write", "Suggest", "Repeat", "Spell", "Add")
            else u
        )
    elif x < 0.05 and skill not in ("repeat", "letters"):
        u = r.choice(["Hey, ", "So, ", "Okay, ", "Well, "]) + (
            u[0].lower() + u[1:]
            if not u.startswith(("I ", "I'")) and u[:1] != u[:1].lower() and u.split()[0].lower().strip("?.,!") in FIRST
            else u
        )
    return u


def turn(r, st, skill, held=False):
    u, a, e, c = SKILLS[skill][0](r, st, held)
    st["last"], st["joke"] = a, "joke" in u or "funny" in u or "laugh" in u
    st["kind"] = st.get("kind") if skill == "again" else skill
    if skill not in ("again", "yes_no", "greet", "talk") and r.random() < 0.06:
        u = r.choice(["Hello! ", "Hi! ", "Hi, ", "Hello. ", "Good morning! "]) + u
    return noise(r, skill, u), a, e, c


def system(r, st):
    x = r.random()
    if x < 0.45:
        return None
    if x < 0.75:
        return SYS_MAIN
    if x < 0.93:
        return r.choice(SYS_OTHER)
    st["name"] = name(r)  # a fact that only the system turn holds
    return f"{SYS_MAIN} The name of the user is {st['name']}."


def conversation(r, n_turns=None, focus=False):
    """One training conversation as a list of {'role', 'content'}."""
    st, msgs = {}, []
    s = system(r, st)
    if s:
        msgs.append(dict(role="system", content=s))
    n = n_turns or r.choice([1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 11])
    for i in range(n):
        k = r.choices(NAMES_S, WEIGHTS_FOCUS if focus else WEIGHTS)[0]
        if focus and k == "recall" and not any(m in st for m in MEM) and r.random() < 0.7:
            k = "tell"
        if i == 0 and r.random() < 0.08:
            k = "greet"
        elif "story?" in st.get("last", "") and r.random() < 0.5:
            k = "yes_no"
        elif st.get("kind") in ("story", "picture", "follow_picture") and r.random() < 0.12:
            k = "again"
        u, a, _, _ = turn(r, st, k)
        msgs += [dict(role="user", content=u), dict(role="assistant", content=a)]
    return msgs


# what to ask before a graded follow-up, and how many of each to keep
NEEDS = {
    "follow_sum": "add",
    "follow_fact": "fact",
    "follow_story": "story",
    "follow_picture": "picture",
    "recall": "tell",
}
EVAL = dict(
    greet=5,
    talk=0,
    identity=6,
    add=16,
    sub=14,
    mul=12,
    follow_sum=12,
    word_problem=12,
    count=12,
    calendar=12,
    opposite=14,
    animals=14,
    colour_of=10,
    letters=14,
    sort=14,
    repeat=12,
    fact=20,
    follow_fact=10,
    where=12,
    is_a=10,
    rhyme=6,
    tell=0,
    recall=20,
    unknown=12,
    yes_no=0,
    again=0,
    too_big=6,
    story=7,
    follow_story=4,
    picture=8,
    follow_picture=6,
)


def heldout(seed=2027):
    """300 conversations; the last user turn is to be answered."""
    r = random.Random(seed)
    out = []
    for skill, n in EVAL.items():
        i = 0
        while i < n:
            st, msgs = {}, []
            if r.random() < 0.4:
                msgs.append(dict(role="system", content=SYS_MAIN))
            filler = r.choice([0, 0, 0, 1, 2])
            need = NEEDS.get(skill)
            plan = ["talk"] * (filler if not need else 0) + ([need] if need else [])
            if skill == "recall":
                plan += [
                    r.choice(["add", "opposite", "talk", "fact", "story", "calendar"])
                    for _ in range(r.choice([0, 1, 1, 2, 3]))
                ]
            for k in plan:
                # the fillers come from the training side, the tested combination from the held-out side
                u, a, _, _ = turn(r, st, k, held=k == need)
                msgs += [dict(role="user", content=u), dict(role="assistant", content=a)]
            if skill == "recall" and not any(k in st for k in MEM):
                continue
            if skill == "follow_sum" and st.get("num", 99) > 20 or skill == "follow_fact" and len(st["fact"][0]) < 2:
                continue
            try:
                u, a, e, c = turn(r, st, skill, held=True)
            except RuntimeError:  # this form has no held-out combination
                continue
            if e is None:
                continue
            msgs.append(dict(role="user", content=u))
            out.append(dict(skill=skill, messages=msgs, reference=a, expect=e, check=c))
            i += 1
    return out


def mark(reply, expect, check):
    """True when the reply holds the expected answer."""
    reply = reply.strip()
    if check == "num":
        n = re.findall(r"\d+", reply)
        return bool(n) and n[-1] == expect
    if check == "start":
        return reply.lower().startswith(expect.lower())
    if check == "case":
        return re.search(r"\b" + re.escape(expect) + r"\b", reply) is not None
    if check == "whole":
        return reply.lower().rstrip(".") == expect.lower()
    return re.search(r"(?<!\w)" + re.escape(expect.lower()) + r"(?!\w)", reply.lower()) is not None


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--count", type=int, default=3)
    ap.add_argument("--heldout")
    a = ap.parse_args()
    if a.heldout:
        rows = heldout()
        with open(a.heldout, "w") as f:
            for x in rows:
                f.write(json.dumps(x) + "\n")
        print(len(rows), "rows")
    else:
        r = random.Random(a.seed)
        for _ in range(a.count):
            for m in conversation(r):
                print(f"{m['role']:>9}: {m['content']}")
            print()
