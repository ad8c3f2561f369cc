#!/usr/bin/env python3
"""Writes data/tokenizer_golden.json: what transformers gives for a small tokenizer and a range of chat templates.

Needs transformers and tokenizers; run it again after a change here and commit the file.
"""

import json
import os
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}"
    "{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<|Assistant|>' + content + '<|endoftext|>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}")

R1_THINK = R1.replace("{{'<|Assistant|>'}}", "{{'<|Assistant|><think>\\n'}}")

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

RAISING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ message.content }}{% endfor %}")

GENERATION = """{% for message in messages %}
{% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}
{{ message.content }}<|im_end|>
{% endgeneration %}
{%- else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{%- generation -%}   x   {%- endgeneration -%}{% endif %}"""

FEATURES = """{# a comment #}
{%- macro shout(text, times=1) -%}{{ text | upper * times }}{%- endmacro -%}
{% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% if loop.index > 4 %}{% break %}{% endif %}
  [{{ loop.index }}/{{ loop.length }}] {{ message | tojson }} {{ message.extra | tojson(indent=2) }} {{ message.content | tojson(ensure_ascii=true) }}
{% endfor %}
{{ true }} {{ false }} {{ none }} {{ undefined_thing }} {{ [1, 'a', true, none, 2.5] }} {{ {'k': "it's", 'n': 3} }} {{ 1.0 }} {{ 10 / 4 }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 4 }}
{{ shout('hey', 2) }} {{ "a-b-c".split('-') | join('+') }} {{ "  pad ".strip() }}|{{ " x".lstrip() }}|{{ "x ".rstrip() }} {{ "Hello".replace('l', 'L') }} {{ "abc"[::-1] }} {{ "abcdef"[1:3] }}
{{ "prefix-rest".removeprefix('prefix-') }} {{ "rest.txt".removesuffix('.txt') }} {{ "a=b=c".partition('=') | join('|') }} {{ "a=b=c".rpartition('=') | join('|') }} {{ "a b c".rsplit(' ', 1) | join('|') }}
{{ "title case".title() }} {{ "CAP".lower() }} {{ "cap".capitalize() }} {{ "a,b".split(',')[0] }} {{ "aXbX".count('X') }} {{ "abc".find('c') }} {{ "42".isdigit() }}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ (messages | first).role }} {{ (messages | last)['role'] }}
{{ messages[0].get('content', 'none') }} {{ messages[0].get('missing', 'fallback') }} {{ messages[0].missing is defined }} {{ messages[0].content is string }} {{ messages[0] is mapping }} {{ messages is iterable }}
{{ (messages | length) ~ ' turns' }} {{ 'yes' if messages else 'no' }} {{ messages[0].content | default('x', true) }} {{ '<b>&"' }} {{ 'a' in 'abc' }} {{ 'role' in messages[0] }} {{ not true }} {{ 3 > 2 and 1 != 2 }}
{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}

{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}
  {%- if add_generation_prompt %} GEN {% endif -%}
{{ bos_token }}{{ eos_token }}{{ pad_token }}
"""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>", "<|User|>", "<|Assistant|>"]

CONVERSATIONS = [
    [{"role": "user", "content": "What is 12 + 30?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
     {"role": "user", "content": "Bye  "}],
    [{"role": "user", "content": "Say \"q\" <b>&amp;"}, {"role": "assistant", "content": "<think>\nquote it\n</think>\n\n\"q\""}],
    [{"role": "user", "content": "Grüße, 世界 🎉\u2028\t\\n", "extra": {"b": [1, 2.5, None, True], "a": {"é": "\u0007\u007f"}}},
     {"role": "skip", "content": ""}, {"role": "assistant", "content": "  spaced  \n"}],
    [{"role": "assistant", "content": "first"}, {"role": "user", "content": "second"}],
    [{"role": "user", "content": "call"}, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "f", "arguments": {"x": 1, "a": ["ü", 1e20, 0.00001]}}}]}],
]

TEXTS = ["", "Hello world", "step by step, 12345 apples", "Grüße, 世界 🎉 \u00a0 e\u0301", "line\n\n\tindent  \r\n",
         "<|im_start|>user\nx<|im_end|>", "<|im_start|> <|im_end|>  <|eot_id|>", "a" * 70, "\u0000\u0007", "𝔘𝔫𝔦\u200d👩\u200d🚀"]


def build_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s*[\r\n]+|[^\r\n\p{L}\p{N}]?\p{L}+"), behavior="isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    words = ["Hello world the answer is step by step user assistant system think please reason apples \n\n quote it"]
    tokenizer.train_from_iterator(words * 10, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False), AddedToken("</think>", special=False, normalized=False)])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])
    return tokenizer


def load(folder, tokenizer_json, config, template=None):
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/tokenizer.json", "w", encoding="utf-8") as file:
        file.write(tokenizer_json)
    with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
        json.dump({**config, "tokenizer_class": "PreTrainedTokenizerFast"}, file)
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.chat_template = template
    return loaded


def render(tokenizer, messages, add_generation_prompt):
    try:
        return {"text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)}
    except Exception as error:  # whatever the template raises is the golden answer
        return {"error": str(error)}


def example(tokenizer, messages):
    """Prompt and completion as TRL cuts them where the template writes the content and no token spans the cut."""
    content = messages[-1]["content"]
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    ids, cut = encode(whole), len(encode(prompt))
    if not whole.startswith(prompt + content):
        if prompt.endswith("<think>\n") and content.startswith("<think>\n"):
            content = content[len("<think>\n"):]
        ids = encode(prompt) + encode(content) + [tokenizer.eos_token_id]
    elif ids[:cut] != encode(prompt):
        ids = encode(prompt) + encode(whole[len(prompt):])
    return {"messages": messages, "input_ids": ids, "labels": [-100] * cut + ids[cut:]}


def main():
    tokenizer_json = build_tokenizer().to_str()
    config = {"bos_token": "<|begin_of_text|>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False,
              "normalized": False, "rstrip": False, "single_word": False, "special": True}, "pad_token": "<|endoftext|>"}
    golden = {"tokenizer": json.loads(tokenizer_json), "config": config, "encode": [], "decode": [], "templates": [], "examples": []}
    with tempfile.TemporaryDirectory() as folder:
        base = load(f"{folder}/base", tokenizer_json, config)
        for text in TEXTS:
            for add in [False, True]:
                golden["encode"].append({"text": text, "add_special_tokens": add, "ids": base(text, add_special_tokens=add)["input_ids"]})
        for text in TEXTS:
            ids = base(text)["input_ids"]
            for cut in {len(ids), max(1, len(ids) // 2)}:
                for skip in [False, True]:
                    golden["decode"].append({"ids": ids[:cut], "skip_special_tokens": skip,
                                             "text": base.decode(ids[:cut], skip_special_tokens=skip)})
        templates = {"chatml": CHATML, "llama3": LLAMA3, "r1": R1, "r1_think": R1_THINK, "qwen3": QWEN3, "raising": RAISING,
                     "generation": GENERATION, "features": FEATURES}
        for name, template in templates.items():
            tokenizer = load(f"{folder}/{name}", tokenizer_json, config, template)
            # As text: templates see the order of keys.
            cases = [{"messages_json": json.dumps(messages), "add_generation_prompt": add, **render(tokenizer, messages, add)}
                     for messages in CONVERSATIONS for add in [False, True]]
            golden["templates"].append({"name": name, "template": template, "cases": cases})
        ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "r1": "<|endoftext|>", "r1_think": "<|endoftext|>", "qwen3": "<|im_end|>"}
        for name, eos in ends.items():
            tokenizer = load(f"{folder}/{name}.{eos[2]}", tokenizer_json, {**config, "eos_token": eos}, templates[name])
            turns = ["42", "<think>\n12 + 30 is 42\n</think>\n\nThe answer is 42.", "\n\nspaced\n", "<think>x</think>42"]
            if name == "r1_think":
                turns = turns[:3]
            rows = [example(tokenizer, [{"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": turn}])
                    for turn in turns]
            rows.append(example(tokenizer, CONVERSATIONS[1][:3]))
            golden["examples"].append({"template": name, "eos_token": eos, "rows": rows})
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "tokenizer_golden.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(golden, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
