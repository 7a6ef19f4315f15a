#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/text/templates.json: what transformers renders with chat templates of the served families, or how they
refuse. The templates themselves are those that llama.cpp's sources carry for its own tests. Not run by ./test:

    python3 -m venv /tmp/templates
    /tmp/templates/bin/pip install transformers==5.19.0 jinja2==3.1.6
    /tmp/templates/bin/python tests/goldens/make_templates.py "$(benchmarks/cpu/llama_cpp sources)/models/templates"
"""
import datetime
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = pathlib.Path(__file__).resolve().parent / "text/templates.json"
UNIX_SECONDS = 1767225600
TEMPLATES = [
    "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "mistralai-Mistral-Nemo-Instruct-2407",
    "Mistral-Small-3.2-24B-Instruct-2506", "unsloth-mistral-Devstral-Small-2507", "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct",
]
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "The weather <now> & then, at a \"place\".",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "A town: Zürich, 東京"},
        "days": {"type": "integer", "enum": [1, 2]}}, "required": ["place"]}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich", "days": 1}}}]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "{\"sky\": \"clear\"}"}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


# As tests/test-chat-template.cpp of llama.cpp has it (MIT), and no file.
INLINE = {"phi-4": (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + "
    "'<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + "
    "'<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + "
    "'<|im_end|>'}}{% endif %}{% endfor %}")}

CASES = [
    {"messages": [user("Hello")], "add_generation_prompt": True},
    {"messages": [user("Hello")], "add_generation_prompt": False},
    {"messages": [{"role": "system", "content": " Be brief.\n"}, user("One?"), {"role": "assistant", "content": "Two. "},
                  user("\n Three {{ bos_token }} \"four\" 'five' <|im_end|> 東京\t")], "add_generation_prompt": True},
    {"messages": [user("Why?"), {"role": "assistant", "content": "<think>\nSo.\n</think>\n\nBecause."}, user("And?")],
     "add_generation_prompt": True},
    {"messages": [user("Hello")], "add_generation_prompt": True, "enable_thinking": False},
    {"messages": [user("A"), user("B")], "add_generation_prompt": True},
    {"messages": [user("The weather?")], "tools": [TOOL], "add_generation_prompt": True},
    {"messages": [{"role": "system", "content": "Be brief."}, user("The weather?"), CALL, RESULT],
     "tools": [TOOL, TOOL], "add_generation_prompt": True},
]


def rendered(template: jinja2.Template, case: dict) -> dict:
    variables = {"tools": None, "documents": None, "bos_token": "<BOS>", "eos_token": "<EOS>", **case}
    try:
        return {"text": template.render(**variables)}
    except jinja2.exceptions.TemplateError as error:
        return {"refusal": str(error)}


def main() -> None:
    golden = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "unix_seconds": UNIX_SECONDS,
              "cases": CASES, "inline": INLINE, "rendered": {}}
    now = datetime.datetime.fromtimestamp(UNIX_SECONDS, datetime.timezone.utc)
    files = {name: (pathlib.Path(sys.argv[1]) / f"{name}.jinja").read_text() for name in TEMPLATES}
    for name, source in (files | INLINE).items():
        template = _compile_jinja_template(source)
        template.globals["strftime_now"] = now.strftime
        golden["rendered"][name] = [rendered(template, case) for case in CASES]
    OUT.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


main()
