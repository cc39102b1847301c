"""The chat templates of a GGUF file.

In: its metadata. Out: templates by name; a name that older files have in place of RWKV's template
becomes that. Refuses templates that are no strings.
"""

from __future__ import annotations

from crumb.checkpoints.gguf.metadata import Metadata

TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"

WORLD_NAME = "rwkv-world"

WORLD = (
    "{%- for message in messages -%}"
    "{{- {'user': 'User', 'assistant': 'Assistant'}.get(message.role, 'System') -}}"
    "{{- ': ' + message.content | trim + '\\n\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
"""What the name stands for: turns end with an empty line."""


def chat_templates(values: Metadata) -> dict[str, str]:
    """Templates by name. Raises: CheckpointError."""
    keys = {"default": TEMPLATE} if TEMPLATE in values else {}
    if TEMPLATES in values:
        named = values.texts(TEMPLATES)
        keys |= {name: f"{TEMPLATE}.{name}" for name in named if name != "default"}
    templates = {name: values.text(key) for name, key in keys.items()}
    return {name: WORLD if text == WORLD_NAME else text for name, text in templates.items()}
