#!/usr/bin/env python3
"""Makes everything that the quickstart needs: a tiny teacher, a tiny base student and the problems.

    python3 -m venv .venv && .venv/bin/pip install torch==2.11.0 transformers==5.17.0 reasoning-gym==0.1.25
    .venv/bin/python make_models.py [problems] [models] [--output DIR]

"problems" draws the problems (prompts.jsonl, test.jsonl, and lessons.json for the next step), "models" trains; default: both.

The problems are reasoning-gym's chain_sum, additions of two numbers. The base student has seen sums of one and two digits, answered directly and by adding digit by
digit. It writes the format well but does not carry the way of reasoning over to longer numbers. The teacher is that base, trained further on sums of up to
four digits. Both are Llama-type folders of 0.8 million parameters in bf16 that transformers loads as well. Uses a GPU when there is one: three minutes
there, half an hour on two cores.
"""

import argparse
import json
import pathlib
import random
import shutil

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>"]
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>' }}"
    "{%- if not loop.last or message['role'] != 'assistant' %}{{- '\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
)


def sums(digits, size, seed):
    """Distinct additions of two `digits`-digit numbers, as reasoning-gym words them: (question, answer, a, b)."""
    import reasoning_gym

    problems, seen, round_ = [], set(), 0
    while len(problems) < size:
        dataset = reasoning_gym.create_dataset(
            "chain_sum", size=3 * size, seed=seed + 7919 * round_, min_terms=2, max_terms=2, min_digits=digits, max_digits=digits)
        round_ += 1
        for entry in dataset:
            parts = entry["metadata"]["expression"].split()
            if len(parts) != 3 or parts[1] != "+" or (parts[0], parts[2]) in seen:
                continue
            seen.add((parts[0], parts[2]))
            problems.append((entry["question"], entry["answer"], int(parts[0]), int(parts[2])))
            if len(problems) == size:
                break
        if round_ > 50:
            break  # there are only so many short sums
    return problems


def reasoning(a, b):
    """The sum digit by digit from the right, each line with the carry it took, then the answer."""
    lines, carry = [], 0
    left, right = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(left), len(right))):
        x, y = int(left[i]) if i < len(left) else 0, int(right[i]) if i < len(right) else 0
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return "<think>\n" + "\n".join(lines) + "\n</think>\n\n\\boxed{" + str(a + b) + "}"


def conversation(problem, with_reasoning):
    question, answer, a, b = problem
    if with_reasoning:
        return f"<|user|>\n{question}\n\n{INSTRUCTION}<|end|>\n<|assistant|>\n", reasoning(a, b) + "<|end|>"
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n", "\\boxed{" + answer + "}<|end|>"


def make_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def train(model, tokenizer, draw, steps, learning_rate, batch_size, rng):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    model.train()
    for step in range(steps):
        rows = []
        for _ in range(batch_size):
            prompt, completion = draw(rng)
            head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            tail = tokenizer(completion, add_special_tokens=False)["input_ids"]
            rows.append((head + tail, [-100] * len(head) + tail))
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows], device=DEVICE)
        labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows], device=DEVICE)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows], device=DEVICE)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def evaluate(model, tokenizer, problems):
    """Share right, and share with a well-formed answer, of greedy answers under the instruction."""
    model.eval()
    right = formatted = 0
    for start in range(0, len(problems), 50):
        chunk = problems[start:start + 50]
        prompts = [tokenizer(conversation(p, True)[0], add_special_tokens=False)["input_ids"] for p in chunk]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=96, do_sample=False)
        for problem, row in zip(chunk, output):
            text = tokenizer.decode(row[longest:].tolist())
            body = text.split("<|end|>")[0]
            answer = body.split("</think>")[-1].strip()
            formatted += "</think>" in body and answer.startswith("\\boxed{") and answer.endswith("}")
            right += answer == "\\boxed{" + problem[1] + "}"
    return right / len(problems), formatted / len(problems)


def save(model, tokenizer, folder):
    if folder.exists():
        shutil.rmtree(folder)
    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.to(torch.float32)


def write_problems(output):
    test = sums(3, 200, seed=1_000_003)
    held_out = {(a, b) for _, _, a, b in test}
    prompts = [p for p in sums(3, 3200, seed=11) if (p[2], p[3]) not in held_out][:3000]
    for name, problems in [("prompts.jsonl", prompts), ("test.jsonl", test)]:
        with open(output / name, "w") as file:
            for question, answer, _, _ in problems:
                file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    # The models' own lessons: other sums than those they will be asked.
    asked = held_out | {(a, b) for _, _, a, b in prompts}
    three = [p for p in sums(3, 8000, seed=31) if (p[2], p[3]) not in asked]
    lessons = {"test": test, "1": sums(1, 40, seed=21), "2": sums(2, 3000, seed=22), "3": three, "4": sums(4, 4000, seed=32)}
    (output / "lessons.json").write_text(json.dumps(lessons))


def make_models(output, base_steps, teacher_steps, seed):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    lessons = json.loads((output / "lessons.json").read_text())
    texts = ["".join(conversation(p, r)) for p in lessons["2"][:1000] + lessons["3"][:1000] for r in (False, True)]
    tokenizer = make_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(config).to(DEVICE)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")

    def draw_from(weights, reasoning_share):
        digits = list(weights)
        return lambda r: conversation(r.choice(lessons[r.choices(digits, weights.values())[0]]), r.random() < reasoning_share)

    train(model, tokenizer, draw_from({"1": 1, "2": 9}, 0.7), base_steps, 3e-3, 64, rng)
    model = save(model, tokenizer, output / "base")
    print("base: right %.3f, formatted %.3f" % evaluate(model, tokenizer, lessons["test"]))
    print("base on two digits: right %.3f, formatted %.3f" % evaluate(model, tokenizer, lessons["2"][:200]))
    train(model, tokenizer, draw_from({"1": 1, "2": 2, "3": 9, "4": 2}, 0.95), teacher_steps, 2e-3, 64, rng)
    model = save(model, tokenizer, output / "teacher")
    print("teacher: right %.3f, formatted %.3f" % evaluate(model, tokenizer, lessons["test"]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", choices=["problems", "models"], default=["problems", "models"])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--base-steps", type=int, default=2000)
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if "problems" in arguments.what:
        write_problems(arguments.output)
    if "models" in arguments.what:
        make_models(arguments.output, arguments.base_steps, arguments.teacher_steps, arguments.seed)


if __name__ == "__main__":
    main()
