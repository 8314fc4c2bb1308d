"""Stories and picture prompts of the chat generator."""

import re

from chance import an, cap, draw, thing
from words import ANIMALS, HEROES, PLACES, P_BACK, P_COL, P_GROUND, P_OBJ, P_SIDE, P_SKY, STHINGS

PLOTS = [
    # 0: lost and found
    [
        ["Once there was a {h} who lived {p}.", "{P} there lived a little {h}.", "A long time ago a {h} lived {p}."],
        [
            "Every evening the {h} played with an old {t}.",
            "The {h} had only one treasure, a small {t}.",
            "More than anything the {h} loved an old {t}.",
        ],
        ["One day the {t} was gone.", "One windy morning the {t} was lost.", "Then one night the {t} disappeared."],
        [
            "The {h} looked under every stone and behind every tree.",
            "The {h} searched all day and asked everyone on the way.",
            "The {h} looked here and there until the sun went down.",
        ],
        [
            'A {f} came by and said, "I saw it near the water."',
            'At last a kind {f} said, "Follow me, I know where it is."',
            'A small {f} whispered, "Look behind the old wall."',
        ],
        [
            "Together they walked through the dark and found it.",
            "They went together, and there it was, safe and dry.",
            "They ran there side by side and found the {t} in the grass.",
        ],
        [
            "From that day on the {h} and the {f} were friends.",
            "The {h} laughed with joy and shared supper with the {f}.",
            "The {h} said thank you, and they stayed friends for ever.",
        ],
    ],
    # 1: the storm
    [
        ["There was once a {h} {p}.", "A young {h} had a little home {p}.", "{P} a {h} was resting after a long day."],
        [
            "One night a great storm came and all the lights went out.",
            "Suddenly dark clouds came and the wind began to howl.",
            "That evening the rain fell so hard that nobody could see.",
        ],
        [
            "The {h} heard a {f} crying outside.",
            "Somewhere a lost {f} was calling for help.",
            "A cold {f} knocked at the door.",
        ],
        [
            "The {h} took the {t} and went out into the rain.",
            "Without waiting, the {h} picked up the {t} and ran out.",
            '"I am coming!" called the {h}, holding the {t} tight.',
        ],
        [
            "With the {t} it was easy to find the way.",
            "Thanks to the {t} they found each other.",
            "The {t} showed them the path home.",
        ],
        [
            "Soon both were warm and dry by the fire.",
            "They sat by the fire and drank hot milk.",
            "When they came home, the soup was still warm.",
        ],
        [
            "In the morning the sky was blue again.",
            "The next day the sun shone and the storm was forgotten.",
            "By morning the storm was over, and a friendship had begun.",
        ],
    ],
    # 2: the magic thing
    [
        [
            "One morning a {h} found a strange {t} {p}.",
            "A {h} was walking {p} and saw a shining {t}.",
            "Long ago a curious {h} found a {t} {p}.",
        ],
        [
            "It was old and covered with dust.",
            "It was small, but it shone like gold.",
            "It looked plain, yet it felt warm.",
        ],
        [
            'When the {h} touched it, a soft voice said, "Make a wish."',
            "The {h} cleaned it, and it began to sing.",
            '"I can give you one wish," said the {t}.',
        ],
        [
            "The {h} thought for a long time.",
            "The {h} sat down and thought about it.",
            "At first the {h} wanted to be rich.",
        ],
        [
            "Then a hungry {f} came along the road.",
            "Just then a sad {f} passed by.",
            "But nearby a {f} had nothing to eat.",
        ],
        [
            '"I wish for a good supper for two," said the {h}.',
            "So the {h} wished for food for the {f}.",
            '"Please make my friend happy," said the {h}.',
        ],
        [
            "They ate together until the stars came out.",
            "The {f} smiled, and that was better than gold.",
            "After that day neither of them was ever alone.",
        ],
    ],
    # 3: the contest
    [
        [
            "Every year there was a great contest {p}.",
            "{P} all the animals met for a race.",
            "Once a year everybody came together {p} to see who was the best.",
        ],
        [
            "The {h} had never won anything.",
            "The little {h} wanted to win just once.",
            "This time a shy {h} wanted to try.",
        ],
        [
            "The prize was a beautiful {t}.",
            "The winner would get a golden {t}.",
            "On the table lay the prize, a fine {t}.",
        ],
        [
            "The {f} was faster than all the others.",
            "Everybody thought that the {f} would win.",
            "The proud {f} laughed at the others.",
        ],
        [
            "But half way the {f} fell and hurt a foot.",
            "Near the end the {f} got stuck in the mud.",
            "Then the {f} lost the way.",
        ],
        [
            "The {h} stopped and helped.",
            "Instead of running on, the {h} turned back to help.",
            "The {h} could have won, but came back to help.",
        ],
        [
            "They finished last, and everybody clapped.",
            "In the end the {t} was given to both of them.",
            "They reached the end together and shared the {t}.",
        ],
    ],
    # 4: the gift
    [
        [
            "A {h} {p} wanted to give a gift to a {f}.",
            "The {f} had a birthday, and the {h} {p} had no gift.",
            "{P} a {h} was making a gift for a good friend, a {f}.",
        ],
        [
            "There was no money for a big present.",
            "The {h} had only two coins.",
            "The shops were closed and the road was long.",
        ],
        [
            "So the {h} made a {t} by hand.",
            "So the {h} built a little {t} out of wood.",
            "In the end the {h} mended an old {t}.",
        ],
        [
            "It took three days and three nights.",
            "It was hard work, and the paint was still wet.",
            "It was not perfect, but it was made with love.",
        ],
        [
            '"Will you like it?" asked the {h} in a small voice.',
            "The {h} gave it away and looked at the ground.",
            "On the way it rained, but the {t} stayed dry.",
        ],
        [
            '"It is the best {t} in the world," said the {f}.',
            "The {f} was so happy that everybody heard the laughter.",
            "The {f} held it close and began to dance.",
        ],
        [
            "They sang together until late at night.",
            "Even today it stands by the window.",
            "And they are still the best of friends.",
        ],
    ],
    # 5: the journey
    [
        [
            "A brave {h} lived {p} and dreamed of far places.",
            "One spring a {h} left a home {p} to see the world.",
            "{P} a {h} looked at the road and wondered where it went.",
        ],
        [
            "The bag held some bread and a {t}.",
            "A {t} was all there was in the bag.",
            '"Take this {t} with you," said the old {f}.',
        ],
        [
            "On the first day the road went up a high hill.",
            "The way led through fields and over three rivers.",
            "After two days there was a deep, dark wood.",
        ],
        [
            "A {f} was sitting there and could not go on.",
            "There a tired {f} asked for help.",
            "Behind a rock sat a {f} who had lost the way.",
        ],
        [
            "The {h} gave the {t} away, because it was needed there.",
            "With the {t} they made a plan.",
            "They used the {t}, and suddenly everything was easy.",
        ],
        [
            "Together they saw the sea for the first time.",
            "From the top they could see the whole land.",
            "At the end of the road they found a quiet bay.",
        ],
        [
            '"Home is where my friends are," said the {h}.',
            "Then they went home, full of stories.",
            "They came back in autumn, older and happy.",
        ],
    ],
]


def s_story(r, st, held):
    _, h, t = draw(held, lambda: ("story", thing(r, HEROES), thing(r, STHINGS)))
    p = r.choice(PLACES)
    f = r.choice([x for x in ANIMALS if x != h])
    plot = r.choice(PLOTS)
    said_place = r.random() < 0.35

    text = " ".join(r.choice(v) for v in plot)

    # the right article in front of each word
    text = re.sub(
        r"\b([Aa]) \{([hft])\}",
        lambda m: (
            ("A" if m[1] == "A" else "a")
            + ("n " if {"h": h, "f": f, "t": t}[m[2]][0] in "aeiou" else " ")
            + "{"
            + m[2]
            + "}"
        ),
        text,
    )
    text = text.format(h=h, t=t, f=f, p=p, P=cap(p))
    w = f"{an(h)} and {an(t)}" + (f" {p}" if said_place else "")
    u = r.choice(
        [
            "Tell me a short story about {w}.",
            "Tell me a story about {w}.",
            "Write a short story about {w}.",
            "Can you tell me a story about {w}?",
            "I want a story with {w}.",
            "A story about {w}, please.",
            "Make up a story about {w}.",
            "Please tell a tale of {w}.",
        ]
    ).format(w=w)
    if not held and r.random() < 0.16:  # no thing, or nothing, given
        if r.random() < 0.5:
            u = r.choice(
                ["Tell me a story about {h}.", "Write a story about {h}.", "A short story about {h}, please."]
            ).format(h=an(h))
        else:
            u = r.choice(
                [
                    "Tell me a story.",
                    "Tell me a short story.",
                    "Can you tell me a story?",
                    "Write a story.",
                    "I want to hear a story.",
                ]
            )
    st["story"] = (h, t, p)
    return u, text, h, "text"


def s_follow_story(r, st, held):
    if "story" not in st:
        return s_story(r, st, held)
    h, t, p = st["story"]
    k = r.randrange(3)
    if k == 0:
        return (
            r.choice(["Who was the story about?", "Who was in the story?", "What was the story about?"]),
            f"The story was about {an(h)} and {an(t)}.",
            h,
            "text",
        )
    if k == 1:
        return (
            r.choice(["Where did the story happen?", "Where was it?", "Where did it take place?"]),
            f"It happened {p}.",
            p,
            "text",
        )
    return (
        r.choice(["Which thing was in the story?", "What object was in the story?"]),
        f"There was {an(t)} in the story.",
        t,
        "text",
    )


# ---------------------------------------------------------- picture prompts
def _pic(p):
    s = f"{an(p['col'])} {p['obj']}"
    if p["side"]:
        s += f" {p['side']}"
    s += f" {p['ground']} {p['skyw']}"
    if p["back"]:
        s += f", {p['back']}"
    return s


def s_picture(r, st, held):
    _, obj, col, sky = draw(held, lambda: ("pic", r.choice(P_OBJ), r.choice(P_COL), r.choice(list(P_SKY))))
    p = dict(
        obj=obj,
        col=col,
        sky=sky,
        skyw=r.choice(P_SKY[sky]),
        ground=r.choice(P_GROUND[obj]),
        side=r.choice(P_SIDE) if r.random() < 0.3 else "",
        back=r.choice(P_BACK) if r.random() < 0.6 else "",
    )
    t = r.randrange(8) if not held else r.randrange(3, 8)
    skyq = {
        "day": r.choice(["by day", "on a sunny day"]),
        "sunset": "at sunset",
        "night": "at night",
        "storm": "in a storm",
    }[sky]
    expect = None
    if t < 3:
        u = r.choice(
            [
                "Suggest a picture.",
                "Suggest a picture prompt.",
                "What should I paint?",
                "Give me a picture prompt.",
                "Give me an idea for a picture.",
                "Write a prompt for a picture.",
                "An image prompt, please.",
                "What picture should I make?",
                "Suggest an image.",
                "Another picture idea?",
            ]
        )
    elif t == 3:
        u = r.choice(
            [
                "Suggest a picture with {o}.",
                "Give me a prompt for {o}.",
                "Write a picture prompt with {o}.",
                "I want to paint {o}.",
            ]
        ).format(o=an(obj))
        expect = obj
    elif t == 4:
        u = r.choice(
            [
                "Suggest a picture with {o}.",
                "Give me a picture prompt for {o}.",
                "I want a picture of {o}.",
                "Paint {o}.",
            ]
        ).format(o=an(col) + " " + obj)
        expect = f"{col} {obj}"
    elif t == 5:
        u = r.choice(["Suggest a picture {s}.", "Give me a prompt for a scene {s}.", "A picture {s}, please."]).format(
            s=skyq
        )
        expect = None
    else:
        u = r.choice(
            [
                "Give me a prompt for {o} {s}.",
                "I want a picture of {o} {s}.",
                "Suggest a picture of {o} {s}.",
                "Draw {o} {s}.",
            ]
        ).format(o=an(col) + " " + obj, s=skyq)
        expect = f"{col} {obj}"
    st["pic"] = p
    return u, _pic(p), expect, "text" if expect else None


def s_follow_picture(r, st, held):
    if "pic" not in st:
        return s_picture(r, st, held)
    p = dict(st["pic"])
    k = r.randrange(3)
    if k == 0:
        col = r.choice([c for c in P_COL if c != p["col"]])
        u = r.choice([f"Make it {col}.", f"Make the {p['obj']} {col}.", f"Can the {p['obj']} be {col}?"])
        p["col"] = col
        e = f"{col} {p['obj']}"
    elif k == 1:
        sky = r.choice([s for s in P_SKY if s != p["sky"]])
        u = {"day": "Make it day.", "sunset": "Make it sunset.", "night": "Make it night.", "storm": "Make it stormy."}[
            sky
        ]
        p["sky"], p["skyw"] = sky, P_SKY[sky][0]
        e = p["skyw"]
    else:
        side = r.choice([s for s in P_SIDE if s != p["side"]])
        u = r.choice(
            [
                f"Put it {side}.",
                f"Put the {p['obj']} {side}.",
                f"Move it {side[3:]}." if side != "in the middle" else "Move it to the middle.",
            ]
        ).replace("Move it the", "Move it to the")
        p["side"] = side
        e = f"{p['obj']} {side}"
    st["pic"] = p
    return u, _pic(p), e, "text"
