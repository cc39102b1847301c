"""A chat becomes the text its model was trained on; a template that misbehaves is stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATS, TEMPLATES, TOOLS

from crumb.embedded import MODELS
from crumb.errors import CheckpointError, CrumbWarning, UsageError
from crumb.files.model_files import DirectoryFiles
from crumb.tokenizer import chat_template
from crumb.tokenizer.chat_template import ChatTemplate, Message, load_chat_template
from crumb.tokenizer.tokenizer import load_tokenizer

HELLO = [Message("user", "Hello")]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})


def render(source: str, **variables: Any) -> str:
    return template(source).render(HELLO, variables=variables)


RENDERED = [
    (
        "chatml",
        "turns",
        "<|im_start|>user\n1<|im_end|>\n"
        "<|im_start|>assistant\n{{ 2 }} {% raw %}<|im_end|>\n"
        "<|im_start|>user\n<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    (
        "headers",
        "with a system",
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nGrüße 🙂 日本<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("brackets", "turns", "<s> [INST] 1 [/INST] {{ 2 }} {% raw %}</s> [INST]  [/INST]"),
    ("brackets", "with a system", "<s> [INST] Be brief.\n\nGrüße 🙂 日本 [/INST]"),
]


@pytest.mark.parametrize(("name", "chat", "expected"), RENDERED)
def test_known_templates_write_what_their_models_read(name: str, chat: str, expected: str) -> None:
    assert template(TEMPLATES[name]).render(CHATS[chat]) == expected


def test_a_chat_without_an_answer_to_come_ends_with_its_last_message() -> None:
    rendered = template(TEMPLATES["chatml"]).render(HELLO, add_generation_prompt=False)
    assert rendered == "<|im_start|>user\nHello<|im_end|>\n"


def test_tools_and_calls_are_json_without_escapes_for_html() -> None:
    rendered = template(TEMPLATES["chatml"]).render(CHATS["a call"], tools=TOOLS)
    first = rendered.split("\n")[2]
    assert json.loads(first) == TOOLS[0]
    assert "<b>one</b> place & no other, in °C" in first
    assert '<call>{"name": "weather", "arguments": {"city": "Köln"}}</call>' in rendered


def test_further_variables_reach_the_template_but_not_those_it_is_given() -> None:
    chatml = template(TEMPLATES["chatml"])
    assert chatml.render(HELLO, variables={"enable_thinking": False}).endswith("<think></think>")
    with pytest.raises(UsageError, match="messages: this variable of the chat template is taken"):
        chatml.render(HELLO, variables={"messages": []})


def test_a_template_that_refuses_a_chat_says_why() -> None:
    with pytest.raises(UsageError, match="refuses this chat: Roles must take turns"):
        template(TEMPLATES["brackets"]).render([Message("assistant", "I begin")])


def test_loops_know_their_length_though_they_are_counted() -> None:
    source = (
        "{% for m in messages * 3 %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}"
    )
    assert render(source) == "1/3False 2/3False 3/3True "
    source = "{% for x in [3, 4, 5] if x != 4 %}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}"
    assert render(source) == "53"
    assert render("{% for x in missing %}a{% else %}b{% endfor %}") == "b"


def test_what_a_client_sends_as_null_is_not_there() -> None:
    chat = [{"role": "user", "content": None, "name": "x"}]
    source = "{% for m in messages %}{{ 'content' in m }}{{ m.name }}{% endfor %}"
    assert template(source).render(chat) == "Falsex"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_have_the_names_that_templates_read(name: str) -> None:
    chat = [{"role": "assistant", "content": "Yes.", name: "hm"}]
    source = (
        "{% for each in messages %}{{ each.thinking }} {{ each.reasoning_content }}{% endfor %}"
    )
    assert template(source).render(chat) == "hm hm"
    assert template(source).render(HELLO) == " "


@pytest.mark.parametrize("chat", [[], ["Hello"]])
def test_a_chat_without_messages_is_refused(chat: Any) -> None:
    with pytest.raises(UsageError, match="message"):
        template("").render(chat)


TEXT_ALONE = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
PARTS_ALONE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %};{% endfor %}"
)
PICKY = "{{ raise_exception('two messages') if messages|length < 2 }}" + TEXT_ALONE
IN_PARTS = [{"type": "text", "text": "The sea"}, {"type": "text", "text": " was calm"}]


@pytest.mark.parametrize("source", [TEXT_ALONE, PARTS_ALONE, EITHER])
@pytest.mark.parametrize("content", ["The sea was calm", IN_PARTS])
def test_content_is_given_in_the_shape_that_the_template_takes(source: str, content: Any) -> None:
    chat = [{"role": "user", "content": content}, {"role": "tool", "calls": []}]
    assert template(source).render(chat).startswith("user: The sea was calm;tool: ")


def test_a_template_that_takes_no_single_message_is_given_content_as_it_is() -> None:
    chat = [Message("user", "a"), Message("assistant", "b")]
    assert template(PICKY).render(chat) == "user: a;assistant: b;"


def test_a_picture_for_a_template_of_texts_is_refused() -> None:
    chat = [{"role": "user", "content": [*IN_PARTS, {"type": "image", "url": "x"}]}]
    with pytest.raises(UsageError, match="takes texts alone"):
        template(TEXT_ALONE).render(chat)


def test_the_date_is_the_one_of_today() -> None:
    before = datetime.now().strftime("%d %b %Y")
    rendered = render("{{ strftime_now('%d %b %Y') }}")
    assert rendered in (before, datetime.now().strftime("%d %b %Y"))


TWICE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = BODY %}{% endfor %}"

ENDLESS = {
    "loops in loops": "{% set r = range(9999) %}{% for a in r %}{% for b in r %}"
    "{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(100001) %}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macros that call two": (
        "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set a = f(n - 1) %}{% endif %}"
        "{% endmacro %}"
        "{{ f(80) }}"
    ),
    "output": "{% for a in range(9999) %}{% for b in range(99) %}"
    + "x" * 200
    + "{% endfor %}{% endfor %}",
    "multiplied": "{{ 'x' * 10 ** 10 }}",
    "a list multiplied": "{{ (10 ** 10 * [1]) | length }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}",
    "doubled by a join": TWICE.replace("BODY", "ns.x ~ ns.x"),
    "doubled by a sum": TWICE.replace("BODY", "ns.x + ns.x"),
    "doubled by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    + TWICE.replace("BODY", "f(ns.x)"),
    "padded by a method": "{{ 'x'.ljust(10 ** 9) }}",
    "padded by a filter": "{{ 'x' | center(10 ** 9) }}",
    "a wide number": "{{ '%999999999d' % 1 }}",
    "a wide number by a filter": "{{ '%-999999999d' | format(1) }}",
    "a width from outside": "{{ '%*d' % (99999999, 1) }}",
    "wide JSON": "{{ messages | tojson(indent=10 ** 9) }}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_that_does_not_end_or_grows_is_stopped(case: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template fails"):
        render(ENDLESS[case])


def test_a_long_chat_is_far_from_the_bounds() -> None:
    chat = [Message(role, "word " * 200) for role in ("user", "assistant")] * 1000
    rendered = template(TEMPLATES["chatml"]).render(chat)
    assert len(rendered) > 2_000_000
    source = "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.role %}"
    source += "{% endfor %}{{ ns.t }}"
    assert template(source).render(chat) == "userassistant" * 1000


WAYS_OUT = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ strftime_now.__code__.co_name }}",
    "{{ self.__init__ }}{{ cycler.__init__.__globals__ }}",
    "{% include 'tokenizer.json' %}",
    "{{ lipsum(9) }}",
)


@pytest.mark.parametrize("source", WAYS_OUT)
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template fails"):
        render(source)


def test_only_plain_values_reach_a_template() -> None:
    with pytest.raises(UsageError, match=r"a chat is made of texts.*found PosixPath"):
        render("", path=Path("x"))
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(CheckpointError, match="recursion"):
        render("", nested=nested)


MISTAKES = {
    "{% for %}": r"cannot be read: line 1: Expected an expression",
    "\n{{ a | no_such_filter }}": r"cannot be read: line 2: No filter named",
    "{% for x in messages %}": r"cannot be read: line 1: Unexpected end of template",
    "{{ messages[0].name.first }}": r"fails: 'dict object' has no attribute 'name'",
    "{{ 1 / 0 }}": r"fails: division by zero",
    "{{ missing | tojson }}": r"fails: Object of type Undefined",
    "{{ messages[0] + 1 }}": r"fails: unsupported operand",
}


@pytest.mark.parametrize("source", MISTAKES)
def test_a_template_with_a_mistake_is_a_checkpoint_error(source: str) -> None:
    with pytest.raises(CheckpointError, match=MISTAKES[source]):
        render(source)


MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    def make(jinja: str | None = None, **files: Any) -> Path:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        if jinja is not None:
            (tmp_path / chat_template.FILE).write_text(jinja)
        return tmp_path

    return make


def test_the_template_file_is_preferred_to_the_settings(make_model: MakeModel) -> None:
    settings = {"chat_template": "old", "bos_token": {"content": "<s>"}, "eos_token": None}
    path = make_model(jinja="new {{ bos_token }}{{ eos_token }}", tokenizer_config=settings)
    assert load_chat_template(DirectoryFiles(path)).render(HELLO) == "new <s>"
    path.joinpath(chat_template.FILE).unlink()
    assert load_chat_template(DirectoryFiles(path)).render(HELLO) == "old"


def test_special_tokens_may_stand_in_a_file_of_their_own(make_model: MakeModel) -> None:
    settings = {"chat_template": "{{ bos_token }}{{ eos_token }}", "eos_token": "</b>"}
    tokens = {"bos_token": "<a>", "eos_token": "</a>", "additional_special_tokens": ["<c>"]}
    path = make_model(tokenizer_config=settings, special_tokens_map=tokens)
    assert load_chat_template(DirectoryFiles(path)).render(HELLO) == "<a></b>"


def test_named_templates_are_chosen_by_whether_there_are_tools(make_model: MakeModel) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    both = load_chat_template(DirectoryFiles(make_model(tokenizer_config={"chat_template": named})))
    assert both.render(HELLO) == "plain"
    assert both.render(HELLO, tools=TOOLS) == "tools"
    one = load_chat_template(
        DirectoryFiles(make_model(tokenizer_config={"chat_template": named[:1]}))
    )
    assert one.render(HELLO, tools=TOOLS) == "plain"
    other = load_chat_template(
        DirectoryFiles(make_model(tokenizer_config={"chat_template": named[1:]}))
    )
    with pytest.raises(UsageError, match=r"expected one named default, found tool_use"):
        other.render(HELLO)


def test_a_model_without_a_template_says_what_to_do(make_model: MakeModel) -> None:
    for path in (make_model(), Path(str(MODELS["novella-7m"]))):
        with pytest.raises(UsageError, match=r"no chat template.*chat_template\.jinja"):
            load_chat_template(DirectoryFiles(path))


@pytest.mark.parametrize("bad", [5, {}, [1], [{"name": "default"}], [{"name": 1, "template": ""}]])
def test_what_is_no_template_is_refused(make_model: MakeModel, bad: Any) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template is not"):
        load_chat_template(DirectoryFiles(make_model(tokenizer_config={"chat_template": bad})))
    make_model(tokenizer_config={}).joinpath(chat_template.FILE).write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read"):
        load_chat_template(DirectoryFiles(make_model()))


def test_a_rendered_chat_gets_no_second_begin_token(make_model: MakeModel) -> None:
    path = make_model(jinja=TEMPLATES["brackets"], tokenizer_config={"bos_token": "<s>"})
    sentencepiece = Path(__file__).parent / "tokenizer-400.model"
    (path / "tokenizer.model").write_bytes(sentencepiece.read_bytes())
    tokenizer = load_tokenizer(DirectoryFiles(path))
    text = load_chat_template(DirectoryFiles(path)).render(HELLO)
    with pytest.warns(CrumbWarning, match="the text begins with <s>.*twice.*Leave <s> out"):
        assert tokenizer.encode(text)[:2] == [1, 1]
    assert tokenizer.encode(text, special=False)[:1] == [1]
    assert tokenizer.encode(text, special=False).count(1) == 1
