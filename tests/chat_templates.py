"""Chat templates of known shapes, written for these tests, and chats to render with them.

In: nothing. Out: a table of templates, one of chats; tests/unit compares them with what a person
wrote down, tests/oracle with transformers.
"""

from __future__ import annotations

from typing import Any

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson ~ '\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content %}{{- message.content }}{%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' ~ (call.function | tojson) ~ '</call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- if message['role'] == 'ipython' %}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim }}
    {{- '<|eot_id|>' }}
    {%- set ns.turns = ns.turns + 1 %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

BRACKETS = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] ~ '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must take turns: user, assistant, user ...') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- ' [INST] ' + (system if loop.last else '') + message['content'] + ' [/INST]' -}}
    {%- else -%}
        {% generation %}{{- ' ' + message['content'] + eos_token -}}{% endgeneration %}
    {%- endif -%}
{%- endfor -%}
"""

LISTING = """\
{% macro line(name, value, depth=1) %}{{ '  ' * depth }}{{ name }}={{ value }};{% endmacro %}
{% for message in messages recursive %}
{{ loop.index }}/{{ loop.length }} {{ line('role', message.role) }}
{% for key, value in message | dictsort if key != 'role' %}
    {{- line(key, value | string | length, 2) }}{{ ',' if not loop.last }}
{% else %}none{% endfor %}
{% if loop.index == 2 %}{% break %}{% endif %}
{% endfor %}
{{ {'b': '<&>é', 'a': [1, 2.5, none, true]} | tojson(indent=2, sort_keys=true) }}
{{ '%s-%03d' | format('x', 7) }} {{ '%d%%' % 5 }} {{ [1, 2] + [3] }} {{ 'ab' * 3 }} {{ 7 // 2 }}
{{ range(3) | list }} {{ messages | map(attribute='role') | join('+') }} {{ missing }}
"""

TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "brackets": BRACKETS, "listing": LISTING}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather in <b>one</b> place & no other, in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]

CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "  Why is <the> sky \"blue\" & 'wide'?\n"}],
    "with a system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße 🙂 日本"},
    ],
    "turns": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "{{ 2 }} {% raw %}"},
        {"role": "user", "content": ""},
    ],
    "a call": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
            ],
        },
        {"role": "tool", "content": "12 °C"},
    ],
}
