"""Renders chat templates with transformers and writes tests/golden/chat_templates.json.

    python tools/golden_templates.py          (needs transformers and jinja2; reads ../shared)

Templates of ../shared/data/chat-templates are named in the output and not copied. The small ones below
exercise the dialect itself, and travel with their source.
"""

import datetime
import json
import os
import pathlib

from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = pathlib.Path(os.environ.get("INKNIB_SHARED", ROOT.parent / "shared"))
NOW = 1720105569  # 2024-07-04 15:06:09 UTC, a Thursday


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


chat_template_utils.datetime = Fixed

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TALK = [
    {"role": "system", "content": "You are terse. "},
    {"role": "user", "content": "What is <b> & 'c'?"},
    {"role": "assistant", "content": "<think>hm</think>A tag.\n\nNothing more."},
    {"role": "user", "content": " 北京 → \"café\" 🚀"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's the <weather> & more — in °C",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["city"],
            },
        },
    }
]
CALLS = TALK[1:2] + [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "abc123xyz", "type": "function",
             "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
        ],
    },
    {"role": "tool", "content": "7.5", "tool_call_id": "abc123xyz"},
]
VARIANTS = {
    "talk": (TALK, None, True),
    "no generation prompt": (TALK[:3], None, False),
    "no system": (TALK[1:2], None, True),
    "tools": (TALK, TOOLS, True),
    "calls": (CALLS, TOOLS, True),
}
# Not every template takes every conversation; the refusals are part of the truth and kept as such.
DIALECT = {
    "blocks": "{% for m in messages %}\n    {% if loop.first %}\nfirst\n    {% endif %}\n"
              "{{ m.role }}: {{ m['content'] }}\n{% endfor %}\nend\n",
    "loop controls": "{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
                     "{% if loop.index > 3 %}{% break %}{% endif %}[{{ m.content }}]{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
                 "{% set ns.last = m.role %}{% endfor %}{{ ns.n }} {{ ns.last }}",
    "strings": "{% set s = messages[1].content %}{{ s.upper() }}|{{ s.split(' ')[0] }}|{{ s.replace('b', 'B') }}|"
               "{{ s.startswith('What') }}|{{ s.endswith('?') }}|{{ ('  x '.strip()) }}|{{ s[2:5] }}|{{ s[::-1] }}|"
               "{{ s.find('is') }}|{{ ' y'.lstrip() + 'z\n'.rstrip('\n') }}|{{ s.removeprefix('What ') }}|"
               "{{ s.title() }}|{{ 'a,b'.split(',') | join('+') }}|{{ s | length }}|{{ 'k' in s }}",
    "values": "{{ none }} {{ true }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ undefined_name }} {{ missing is defined }} "
              "{{ 'x' if add_generation_prompt else 'y' }} {{ tools is none }} {{ documents is none }}",
    "json": "{{ {'b': [1, 2.5, true, none], 'a': 'é<>&\\'\\n'} | tojson }}|{{ {'b': 1, 'a': [] } | tojson(indent=2) }}|"
            "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}|{{ 'é🚀' | tojson(ensure_ascii=true) }}",
    "reversed": "{% for m in messages[::-1] %}{{ m.role }} {% endfor %}{{ messages[-1]['role'] }}"
                "{{ (messages | selectattr('role', 'equalto', 'user') | list | length) }}",
    "macro": "{% macro turn(role, text='none') %}<{{ role }}>{{ text | trim }}{% endmacro %}"
             "{% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}{{ turn('x') }}",
    "dictionaries": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('x', 'no') }} "
                    "{{ messages[0].keys() | list | join(',') }} {{ 'role' in messages[0] }} "
                    "{{ messages[0] is mapping }} {{ messages is iterable }} {{ messages[0].role is string }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%}\n {{ m.content }}"
                  "{% endgeneration %}{% else %}{{ m.role }} {% endif %}{% endfor %}",
    "date": "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%A, %B %-d, %Y') }}|{{ strftime_now('%Y-%m-%dT%H:%M:%S %j') }}",
    "refusal": "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn, please!') }}{% endif %}ok",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{- '\n' -}} {{ '' }}x",
}


def render(template, messages, tools, generate):
    try:
        text = chat_template_utils.render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=generate, **SPECIAL
        )[0][0]
        return {"text": text}
    except Exception as error:
        return {"error": str(error)}


def main():
    cases = []
    for file in sorted((SHARED / "data/chat-templates").glob("*.jinja")):
        source = file.read_text()
        for name in VARIANTS:
            cases.append({"template": file.name, "variant": name} | render(source, *VARIANTS[name]))
    for name, source in DIALECT.items():
        cases.append({"dialect": name, "source": source, "variant": "talk"} | render(source, *VARIANTS["talk"]))
    golden = {
        "script": "tools/golden_templates.py",
        "now": NOW,
        "special": SPECIAL,
        "variants": {
            name: {"messages": m, "tools": t, "add_generation_prompt": g} for name, (m, t, g) in VARIANTS.items()
        },
        "cases": cases,
    }
    target = ROOT / "tests/golden/chat_templates.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    temporary.replace(target)
    for case in cases:
        print(case.get("template") or case["dialect"], "·", case["variant"], "·", repr(case.get("error", "ok"))[:100])


if __name__ == "__main__":
    main()
