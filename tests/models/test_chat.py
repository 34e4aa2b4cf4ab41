"""Chat templates: the same text as transformers renders, and no way for a template to run wild."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from shoal.core.errors import CallerError, OperatorError
from shoal.models import chat
from shoal.models.chat import render

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%Y-%m') + '\n\n' + system }}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}{{- tool | tojson ~ '\n' }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, thinking=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and '</think>' in message.content and loop.index0 < ns.last %}
        {{- '<|im_start|>assistant\n' + message.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
MISTRAL = """{{ bos_token }}
{% for message in messages %}
{% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
{% elif message['role'] == 'assistant' %}
{% generation %}
 {{ message['content'] | trim }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ raise_exception('only user and assistant, not ' ~ message['role']) }}
{% endif %}
{% endfor %}
"""
TALK = [
    {"role": "user", "content": "  Hi <b>you</b> & 'me'\n"},
    {"role": "assistant", "content": "<think>hm</think>\n\nHello."},
    {"role": "user", "content": '日本語 "quoted" {{ braces }}'},
]
SYSTEM = [{"role": "system", "content": "Be brief. "}, *TALK]
PARTS = [{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}]
TOOLS = [{"name": "weather", "parameters": {"ort": "Köln <tag>", "n": [1, 2.5, None, True]}}]


def by_transformers(template: str, messages: Any, **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), bos_token="<s>", eos_token="</s>")
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))


@pytest.mark.parametrize(
    ("template", "messages", "options"),
    [
        (LLAMA3, TALK, {}),
        (LLAMA3, SYSTEM, {}),
        (QWEN, SYSTEM, {}),
        (QWEN, TALK, {"enable_thinking": False}),
        (QWEN, TALK, {"enable_thinking": True, "tools": TOOLS}),
        (GEMMA, TALK, {}),
        (GEMMA, SYSTEM, {}),
        (GEMMA, PARTS, {}),
        (MISTRAL, TALK, {}),
    ],
)
@pytest.mark.parametrize("prompting", [True, False])
def test_equals_transformers(template: str, messages: Any, options: dict[str, Any], prompting: bool) -> None:
    ours = render(
        template, messages, add_generation_prompt=prompting, bos_token="<s>", eos_token="</s>", **options
    )
    assert ours == by_transformers(template, messages, add_generation_prompt=prompting, **options)


def test_parts_are_joined_where_the_template_knows_only_text() -> None:
    joined = [{"role": "user", "content": " one \ntwo"}]
    assert render(QWEN, PARTS) == render(QWEN, joined)


def test_the_clock_of_a_template_is_the_local_one() -> None:
    year = str(datetime.datetime.now().year)
    assert render("{{ strftime_now('%Y') }}", TALK) in (year, str(int(year) + 1))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        {"role": "user", "content": "x"},
        [{"content": "x"}],
        ["x"],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": ["x"]}],
    ],
)
def test_messages_of_the_wrong_form_are_the_callers(messages: Any) -> None:
    with pytest.raises(CallerError) as caught:
        render(QWEN, messages)
    assert caught.value.remedy


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(CallerError, match="roles must alternate"):
        render(GEMMA, TALK[:1] * 2, bos_token="<s>")
    with pytest.raises(CallerError, match="not system"):
        render(MISTRAL, SYSTEM, bos_token="<s>", eos_token="</s>")


def test_a_variable_may_have_any_name() -> None:
    text = render(
        "{{ template }}{{ messages[0].role }}", TALK, **{"template": "t", "messages": "m", "a b": 1}
    )
    assert text == "tuser"


def test_no_template_names_the_remedy() -> None:
    with pytest.raises(CallerError) as caught:
        render(None, TALK)
    assert caught.value.remedy == "use prompts instead of messages, or give --chat-template FILE"


@pytest.mark.parametrize(
    "template",
    ["{% for", "{{ }}", "{% endif %}", "{{ x | nosuchfilter }}", "{{ 'x' | center(9) }}", "{{ " + "(" * 900],
)
def test_a_broken_template_is_the_operators(template: str) -> None:
    with pytest.raises(OperatorError, match="template"):
        render(template, TALK)


GROW = (
    "{%% set ns = namespace(x='aaaaaaaa') %%}{%% for i in range(200) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x' | indent(999999999) }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        GROW % "ns.x + ns.x",
        GROW % "ns.x ~ ns.x",
        GROW % "ns.x | replace('a', 'aa')",
        GROW % "ns.x.replace('a', 'aa')",
        GROW % "[ns.x, ns.x] | join",
        GROW % "'-'.join([ns.x, ns.x])",
        GROW % "[ns.x, ns.x] | join('-')",
    ],
)
def test_a_hostile_template_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.5)
    with pytest.raises(CallerError):
        render(template, TALK)


def test_a_render_after_a_stopped_one_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.05)
    with pytest.raises(CallerError, match="takes more"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", TALK)
    monkeypatch.undo()
    assert render("{% for m in messages %}{{ m.role }} {% endfor %}", TALK) == "user assistant user "
