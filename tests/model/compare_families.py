#!/usr/bin/env python3
"""Makes random models of every family, with random configs and adapters, and compares `distctl score` and `distctl generate` with transformers and
PEFT: float32 log-probabilities to 2e-4, greedy tokens where the best stands 1e-3 above the second, both uncached in the reference. Needs torch,
transformers, peft and safetensors.

    python tests/model/compare_families.py --bin-dir build/release/bin --seed 1 --count 200
    python tests/model/compare_families.py --bin-dir build/release/bin --seed 1 --only 17 --keep FOLDER     one model again, its folder kept
"""
import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
from family_models import greedy_of, load_reference, logprobs_of, read_config, write_model  # noqa: E402
from random_families import FAMILIES, chance, lengths_to_score, random_config  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import GenerationConfig  # noqa: E402

TOLERANCE, LEAST_MARGIN, MOST_ROUNDING, STEPS = 2e-4, 1e-3, 2e-5, 32


def run(options, verb, model, rows, extra=()):
    """The verb's output lines, or what it said last."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = pathlib.Path(folder) / "in.jsonl", pathlib.Path(folder) / "out.jsonl"
        source.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
        command = [options.bin_dir / "distctl", verb, "--model", model, "--dtype", "float32", "--device", "cpu", "--input", source, "--output", output]
        if options.tensor_parallel_size > 1:
            command += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
        done = subprocess.run(command + list(extra), capture_output=True, text=True, timeout=300)
        lines = output.read_text().splitlines() if output.exists() else []
        if done.returncode != 0:
            errors = done.stderr.strip().splitlines() + [line[:300] for line in lines if '"error"' in line]
            return [], f"exit {done.returncode}: {errors[-1] if errors else ''}"
        return [json.loads(line) for line in lines], ""


def compare_scores(options, folder, sequences, wanted, extra=()):
    """What is wrong, or nothing."""
    scored, error = run(options, "score", folder, sequences, extra)
    if error:
        return error
    worst, where = 0.0, None
    for ids, want, own in zip(sequences, wanted, scored, strict=True):
        if own.get("token_ids") != ids or len(own.get("logprobs") or []) != len(ids) or own["logprobs"][0] is not None:
            return f"score of {len(ids)} tokens answers {json.dumps(own)[:200]}"
        for position in range(1, len(ids)):
            difference = abs(own["logprobs"][position] - want[position])
            if not difference <= worst:
                worst, where = difference, (len(ids), position)
    if worst <= TOLERANCE:
        return ""
    return f"log-probabilities differ by {worst:.1e} at token {where[1]} of {where[0]}"


def compare_greedy(options, folder, model, eos, prompts):
    made, error = run(options, "generate", folder, prompts, ["--max-tokens", str(STEPS), "--temperature", "0"])
    if error:
        return error
    for prompt, own in zip(prompts, made, strict=True):
        tokens, margins = greedy_of(model, prompt, STEPS)
        sure = next((index for index, margin in enumerate(margins) if margin < LEAST_MARGIN), STEPS)
        stop = next((index + 1 for index, token in enumerate(tokens) if token in eos), STEPS)
        count = min(sure, stop)
        if own["token_ids"][:count] != tokens[:count]:
            first = next((i for i in range(count) if own["token_ids"][i : i + 1] != [tokens[i]]))
            return f"greedy after {len(prompt)} tokens departs at step {first}: {own['token_ids'][: first + 1]}, not {tokens[: first + 1]}"
        if sure >= stop:
            reason = "stop" if tokens[stop - 1] in eos else "length"
            if len(own["token_ids"]) != stop or own["finish_reason"] != reason:
                return f"greedy after {len(prompt)} tokens ends by {own['finish_reason']} after {len(own['token_ids'])}, not by {reason} after {stop}"
    return ""


def random_adapter(rng, model):
    """LoraConfig's arguments for this model."""
    leaves = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"})
    if model.config.model_type.startswith("deepseek"):
        leaves = [name for name in leaves if name not in ("gate_proj", "up_proj", "down_proj")]  # PEFT turns these into the experts' parameters
    options = {"r": rng.randint(1, 6), "lora_alpha": rng.choice([1, 4, 16, 7.5]), "use_rslora": chance(rng, 0.3), "use_dora": chance(rng, 0.3)}
    options["target_modules"] = rng.sample(leaves, rng.randint(1, len(leaves)))
    if chance(rng, 0.25):
        options["target_modules"] = "all-linear"
    elif chance(rng, 0.2):
        options["target_modules"] = rf".*\.({'|'.join(options['target_modules'])})"
    elif chance(rng, 0.3):
        options["layers_to_transform"] = rng.sample(range(model.config.num_hidden_layers), 1)
    if chance(rng, 0.3):
        options["rank_pattern"] = {rng.choice(leaves): rng.randint(1, 8)}
        options["alpha_pattern"] = {rng.choice(leaves): rng.randint(1, 20)}
    if isinstance(options["target_modules"], list) and chance(rng, 0.4):
        options["target_modules"] += rng.choice([["lm_head"], ["embed_tokens"], ["lm_head", "model.embed_tokens"]])
        options["ensure_weight_tying"] = chance(rng, 0.3) and not options.get("rank_pattern")
    if options["target_modules"] == "all-linear" and model.config.model_type.startswith("deepseek"):
        options["use_dora"] = False
    if chance(rng, 0.3):
        options["bias"] = rng.choice(["all", "lora_only"])
    if chance(rng, 0.25) and not model.config.tie_word_embeddings:
        options["modules_to_save"] = rng.choice([["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
    return options


def compare_adapter(options, rng, folder, model, sequences):
    """(the adapter's options, what is wrong)."""
    lora = random_adapter(rng, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora)).eval()
        except (ValueError, NotImplementedError) as error:
            return lora, f"PEFT refuses: {error}"
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad and "lora_A" not in name and "lora_embedding_B" not in name:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(folder / "adapter", save_embedding_layers=rng.choice(["auto", False]))
    wanted = [logprobs_of(tuned, ids) for ids in sequences]
    error = compare_scores(options, folder, sequences, wanted, ["--adapter", folder / "adapter"])
    if not error and options.merge:
        error = compare_merged(options, folder, sequences, wanted)
    return lora, error


def compare_merged(options, folder, sequences, wanted):
    """`distctl export --merged` of the adapter, scored by us and by transformers."""
    merged = folder / "merged"
    command = [options.bin_dir / "distctl", "export", "--merged", "--model", folder, "--adapter", folder / "adapter", "--output", merged, "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        return f"merge: exit {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
    error = compare_scores(options, merged, sequences, wanted)
    if error:
        return f"merged: {error}"
    model = load_reference(merged)
    worst = max((abs(a - b) for ids, want in zip(sequences, wanted) for a, b in zip(logprobs_of(model, ids)[1:], want[1:])), default=0.0)
    return f"merged, read by transformers: log-probabilities differ by {worst:.1e}" if worst > TOLERANCE else ""


def eos_of(folder, model):
    """As transformers' generate() knows them: generation_config.json's, else config.json's."""
    path = folder / "generation_config.json"
    known = GenerationConfig.from_pretrained(folder).eos_token_id if path.exists() else model.generation_config.eos_token_id
    return [] if known is None else known if isinstance(known, list) else [known]


def make_model(rng, folder, family):
    """(config, sequences and log-probabilities by transformers); another seed where float64 would answer otherwise."""
    spelling = rng.choice(["old", "new", "saved"])
    config, generation, lengths = random_config(rng, family, "new" if spelling == "saved" else spelling)
    for seed in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        write_model(folder, config, seed, generation, rng.choice([1, 1, 2]), tokenizer=chance(rng, 0.7))
        if spelling == "saved":  # what transformers writes itself
            saved = read_config(folder)
            saved.architectures = config["architectures"]
            saved.save_pretrained(folder)
        model, precise = load_reference(folder), load_reference(folder, torch.float64)
        vocab = config["vocab_size"]
        sequences = [[rng.randrange(vocab) for _ in range(length)] for length in lengths_to_score(rng, lengths)]
        wanted = [logprobs_of(model, ids) for ids in sequences]
        if all(abs(a - b) <= MOST_ROUNDING for ids, want in zip(sequences, wanted) for a, b in zip(logprobs_of(precise, ids)[1:], want[1:])):
            return json.loads((folder / "config.json").read_text()), model, sequences, wanted, lengths
    raise RuntimeError("fifty seeds, and all too near to ties")


def compare(options, index, folder):
    """(family, config, {check: what is wrong})."""
    rng = random.Random(f"{options.seed}/{index}")
    family = options.family or list(FAMILIES)[index % len(FAMILIES)]
    config, model, sequences, wanted, lengths = make_model(rng, folder, family)
    found = {"score": compare_scores(options, folder, sequences, wanted)}
    prompts = [[rng.randrange(config["vocab_size"]) for _ in range(length)] for length in {1, rng.randint(2, 9)} | {max(1, length - 5) for length in lengths}]
    if not found["score"].startswith("exit"):
        found["generate"] = compare_greedy(options, folder, model, eos_of(folder, model), prompts)
        lora, error = compare_adapter(options, rng, folder, model, sequences)
        if not error.startswith("PEFT refuses"):
            found["adapter"] = f"{error} {json.dumps(lora)}" if error else ""
    return family, config, {check: error for check, error in found.items() if error}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--only", type=int, help="this index alone")
    parser.add_argument("--family", choices=sorted(FAMILIES))
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--merge", action="store_true", help="also merge each adapter and compare the folder")
    parser.add_argument("--keep", type=pathlib.Path, help="where failing models stay")
    options = parser.parse_args()
    failures, tally = 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(options.count) if options.only is None else [options.only]:
            folder = pathlib.Path(scratch) / str(index)
            family, config, found = compare(options, index, folder)
            good, bad = tally.get(family, (0, 0))
            tally[family] = (good + (not found), bad + bool(found))
            if found:
                failures += 1
                print(f"--seed {options.seed} --only {index}{f' --family {family}' if options.family else ''}: {family}")
                for check, error in found.items():
                    print(f"  {check}: {error}")
                print(f"  {json.dumps(config)}", flush=True)
                if options.keep:
                    shutil.copytree(folder, options.keep / f"{options.seed}-{index}", dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    for family, (good, bad) in sorted(tally.items()):
        print(f"{family:12} {good:4} ok {bad:4} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
