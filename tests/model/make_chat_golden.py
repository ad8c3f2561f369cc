#!/usr/bin/env python3
"""Makes data/chat_golden.json: what transformers renders and what TRL's SFTTrainer prepares.

Needs transformers 5.17 and TRL 1.16 (the versions matter: both change what they give). Reads data/jinja_cases.json and the tokenizer
of data/tokenizer_golden.json.
"""
import json
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import trl
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
TEMPLATES = os.path.join(os.path.dirname(trl.__file__), "chat_templates")

MESSAGES = [
    {"role": "system", "content": "sys é 世界 🎉"}, {"role": "user", "content": " Hello \"x\" 'y' <b>&\n\tz\u200b\xa0"},
    {"role": "assistant", "content": "<think>a</think>b", "n": 1, "f": 2.5, "t": True, "none": None, "list": [1, "a", [2.0, None]],
     "d": {"z": 1, "a": {"b": [1, 2]}}},
    {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]}]
SIMPLE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "bye"}]
VARIABLES = {"bos_token": "<s>", "kw": {"a": 1}}

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Get \"weather\" <now> é", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "東京"]}, "days": {"type": ["integer", "null"], "default": 1.5}},
    "required": ["city"]}}}]


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


CALL = [{"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "days": 2.0}}}]
CONVERSATIONS = [
    [user("Hi")], [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("Bye ")],
    [user("a"), assistant("<think>\nr\n</think>\n\nb"), user("c"), assistant("<think>r2</think>d")],
    [user("a"), assistant("b", reasoning_content="why"), user("c"), assistant("d", reasoning_content="because\n")],
    [user("w?"), assistant("", tool_calls=CALL), {"role": "tool", "content": "12C", "name": "weather", "tool_call_id": "abcdefghi"}, assistant("12")],
    [user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])], [assistant("first"), user("x")], [user("a"), user("b")],
    [user("s /no_think"), assistant("  spaced\n")], [{"role": "user"}], [user(None)]]
KWARGS = [{}, {"add_generation_prompt": True}, {"tools": TOOLS, "add_generation_prompt": True}, {"enable_thinking": False, "add_generation_prompt": True},
          {"continue_final_message": True}]
FAMILIES = ["llama3", "llama3_1", "qwen2_5", "qwen3", "qwen3_instruct_2507", "phi3", "phi3_5", "deepseekv3", "deepseek_r1_distill"]
OWN = {
    "mistral": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
               "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
               "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
               "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
              "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
              "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
              "{% endif %}\n{% endfor %}",
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant "
               "named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
               "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "marked": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
              "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "joined": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
              "{% if add_generation_prompt %}assistant: {% endif %}",
}


def rendered(source, messages):
    try:
        variables = {"tools": None, "documents": None, "add_generation_prompt": False, **VARIABLES}
        text, spans = _render_with_assistant_indices(_compile_jinja_template(source), messages, variables.pop("tools"), variables.pop("documents"),
                                                     variables.pop("add_generation_prompt"), **variables)
        return [source, text, spans]
    except Exception:  # that it fails is the golden answer
        return [source, None, []]


def chat(tokenizer, messages, kwargs):
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except Exception:
        return None


def prepared(tokenizer, model, row, **options):
    try:
        arguments = trl.SFTConfig(output_dir=tempfile.gettempdir(), max_length=None, report_to="none", use_cpu=True, bf16=False, **options)
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
        return {key: trainer.train_dataset[0][key] for key in ("input_ids", "labels")}
    except Exception as error:
        return {"error": str(error)}


def main():
    with open(f"{DATA}/jinja_cases.json", encoding="utf-8") as file:
        cases = json.load(file)
    with open(f"{DATA}/tokenizer_golden.json", encoding="utf-8") as file:
        base = json.load(file)
    golden = {"messages": MESSAGES, "simple": SIMPLE, "variables": VARIABLES, "tools": TOOLS, "families": [], "trl": [],
              "expressions": [rendered("{{ " + one + " }}", MESSAGES) for one in cases["expressions"]],
              "templates": [rendered(one, SIMPLE) for one in cases["templates"]]}
    texts = [("Hello", " world"), ("step ", "by"), ("x", "y<|im_end|>"), ("", ""), ("a b ", "c"), ("é", "\u0301")]
    turns = [[user("Hi"), assistant("Hello")], [{"role": "system", "content": "be"}, user("step by"), assistant("c"), user("d"), assistant("e 世界")],
             [user("x"), assistant("<think>\nr\n</think>\n\nb")], [user("q"), assistant(" lead\n")],
             [user("a"), assistant("<think>k</think>b"), user("c"), assistant("<think>\nz\n</think>d")], [user("x"), assistant("🎉")]]
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/tokenizer.json", "w", encoding="utf-8") as file:
            json.dump(base["tokenizer"], file)
        with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
            json.dump({**base["config"], "tokenizer_class": "PreTrainedTokenizerFast"}, file)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                             num_key_value_heads=2, vocab_size=len(tokenizer)))
        for name in [*FAMILIES, *OWN]:
            if name in OWN:
                tokenizer.chat_template = OWN[name]
            else:
                with open(f"{TEMPLATES}/{name}.jinja", encoding="utf-8") as file:
                    tokenizer.chat_template = file.read()
            family = {"name": name, "template": tokenizer.chat_template, "cases": [], "rows": []}
            for messages in CONVERSATIONS:
                for kwargs in KWARGS:
                    own = {key: value for key, value in kwargs.items() if key != "tools"} | ({"tools": True} if "tools" in kwargs else {})
                    # As text: templates see the order of keys.
                    family["cases"].append([json.dumps(messages), own, chat(tokenizer, messages, kwargs)])
            for turn in turns:
                row = {"prompt": turn[:-1], "completion": turn[-1:]}
                family["rows"].append([{"messages": turn}, prepared(tokenizer, model, row)])
                family["rows"].append([{"prompt": turn[:1], "completion": turn[1:]},
                                       prepared(tokenizer, model, {"prompt": turn[:1], "completion": turn[1:]})])
                family["rows"].append([{"messages": turn, "loss_on": "assistant"},
                                       prepared(tokenizer, model, {"messages": turn}, assistant_only_loss=True)])
            golden["families"].append(family)
        for prompt, completion in texts:
            row = {"prompt": prompt, "completion": completion}
            golden["trl"].append([row, prepared(tokenizer, model, row)])
            golden["trl"].append([{"text": prompt + completion}, prepared(tokenizer, model, {"text": prompt + completion})])
    with open(f"{DATA}/chat_golden.json", "w", encoding="utf-8") as file:
        json.dump(golden, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
