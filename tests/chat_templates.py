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

FOLDED = """\
{{- bos_token }}
{%- set front = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] in ['system', 'developer'] %}
    {%- if messages[0]['content'] is string %}
        {%- set front = messages[0]['content'] ~ '\\n\\n' %}
    {%- else %}
        {%- set front = messages[0]['content'][0]['text'] ~ '\\n\\n' %}
    {%- endif %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' ~ role ~ '\\n' ~ (front if loop.first else '') }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for part in message['content'] if part['type'] == 'text' %}
            {{- part['text'] | trim }}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last < 0 and message.role == 'user' and not message.content.startswith('<result>') %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools or messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' ~ (messages[0].content if messages[0].role == 'system' else '') }}
    {%- for tool in tools or [] %}{{- '\\n' ~ (tool.function or tool) | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if thought and loop.index0 > ns.last - (1 if messages[0].role == 'system' else 0) %}
            {{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem is undefined or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<result>\\n' ~ content ~ '\\n</result>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if not enable_thinking | default(true) %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

CHANNELS = """\
{%- macro kind(spec) -%}
    {%- if spec.type is string and spec.type == 'array' -%}
        {{- kind(spec['items']) ~ '[]' -}}
    {%- elif spec.enum -%}
        {{- '"' ~ spec.enum | join('" | "') ~ '"' -}}
    {%- elif spec.type is iterable and spec.type is not string -%}
        {{- spec.type | join(' | ') -}}
    {%- else -%}
        {{- {'integer': 'number', 'string': 'string'}.get(spec.type, 'any') -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro signatures(tools) -%}
    {{- 'namespace functions {\\n' -}}
    {%- for tool in tools -%}
        {%- set tool = tool.function -%}
        {{- '// ' ~ tool.description ~ '\\ntype ' ~ tool.name ~ ' = (_: {\\n' -}}
        {%- for name, spec in tool.parameters.properties.items() -%}
            {{- name ~ ('' if name in tool.parameters.required or [] else '?') ~ ': ' -}}
            {{- kind(spec) ~ (',' if not loop.last) ~ '\\n' -}}
        {%- endfor -%}
        {{- '}) => any;\\n' -}}
    {%- endfor -%}
    {{- '}' -}}
{%- endmacro -%}
{%- set effort = reasoning_effort | default('medium') -%}
{{- '<|start|>system<|message|>Today: ' ~ strftime_now('%Y-%m-%d') ~ '\\nReasoning: ' ~ effort -}}
{{- '<|end|>' -}}
{%- if messages[0].role in ('system', 'developer') or tools -%}
    {{- '<|start|>developer<|message|>' -}}
    {%- if messages[0].role in ('system', 'developer') -%}
        {{- '# Instructions\\n\\n' ~ messages[0].content ~ '\\n\\n' -}}
    {%- endif -%}
    {%- if tools -%}{{- '# Tools\\n\\n' ~ signatures(tools) -}}{%- endif -%}
    {{- '<|end|>' -}}
{%- endif -%}
{%- set last = namespace(call=none) -%}
{%- for message in messages if message.role not in ('system', 'developer') -%}
    {%- if message.role == 'assistant' and 'tool_calls' in message -%}
        {%- set call = message.tool_calls[0].function -%}
        {%- if message.thinking -%}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' -}}
            {{- message.thinking ~ '<|end|>' -}}
        {%- endif -%}
        {{- '<|start|>assistant to=functions.' ~ call.name -}}
        {{- '<|channel|>commentary json<|message|>' -}}
        {{- call.arguments | tojson ~ '<|call|>' -}}
        {%- set last.call = call.name -%}
    {%- elif message.role == 'tool' -%}
        {%- if last.call is none -%}{{- raise_exception('a result without a call') -}}{%- endif -%}
        {{- '<|start|>functions.' ~ last.call ~ ' to=assistant<|channel|>commentary<|message|>' -}}
        {{- message.content | tojson ~ '<|end|>' -}}
    {%- elif message.role == 'assistant' -%}
        {{- '<|start|>assistant<|channel|>final<|message|>' ~ message.content ~ '<|end|>' -}}
    {%- else -%}
        {{- '<|start|>' ~ message.role ~ '<|message|>' ~ message.content ~ '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""

TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "brackets": BRACKETS, "listing": LISTING}
TEMPLATES |= {"folded": FOLDED, "thinking": THINKING, "channels": CHANNELS}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather in <b>one</b> place & no other, in °C",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "unit": {"type": "string", "enum": ["°C", "°F"]},
                    "place": {"type": ["string", "null"]},
                },
                "required": ["city"],
            },
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
    "results": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Both?"},
        {
            "role": "assistant",
            "content": "<think>\n\nTwo calls.\n</think>\n\n",
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": name}}}
                for name in ("Köln", "<b>São Paulo</b>")
            ],
        },
        {"role": "tool", "content": "12 °C"},
        {"role": "tool", "content": '{"t": [1, 2]}'},
        {"role": "assistant", "content": "<think>\nsum\n</think>\n\nDone.", "thinking": "sum"},
        {"role": "user", "content": "<|im_start|>Thanks<end_of_turn>"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "polite\n"},
    ],
}
