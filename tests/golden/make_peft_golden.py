#!/usr/bin/env python3
"""Writes peft/: 20 steps of training adapters of every kind on the models of families/, as PEFT and transformers do them.

Each case is a folder:
  rows.jsonl             {input_ids, labels[, position_ids]}; where position_ids return to 0 a new sample begins, which sees nothing before it and
                         whose first token nothing predicts
  adapter/               where training starts, as PEFT saves it; absent where training starts by itself (expected.json's `lora`)
  expected.json          {model, training, [lora], losses, learning_rates}: folder of families/, the job's `student.training`, each step's loss
                         (sum over the accumulated batch / its trained tokens)
  expected.safetensors   the adapter after the last step, under PEFT's names; absent where its signs are free (pissa)
Cases where float64 differs by more than a fifth of the tolerance are refused. Weight decay spares what transformers' Trainer spares: biases and norms. Run where torch, transformers and peft are installed, after
make_family_golden.py:
  python tests/golden/make_peft_golden.py [FOLDER [NAME...]]
"""
import json
import pathlib
import random
import shutil
import sys
import warnings

import torch
from family_models import load_reference
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import Trainer, get_scheduler

STEPS, BATCH, ACCUMULATE = 20, 2, 2
MOST_ROUNDING = 2e-5
FAMILIES = pathlib.Path(__file__).parent / "families"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# name: (model, LoraConfig's arguments, share of the rows that hold several samples, scheduler, what the case overrides in `training`)
CASES = {
    "llama_lora": ("llama_mha", dict(r=4, lora_alpha=9, target_modules=["q_proj", "v_proj", "down_proj"]), 0.5, "linear", {}),
    "llama_dora_bias": ("llama_biases", dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "gate_proj"], use_dora=True, bias="lora_only"),
                        0.0, "constant", {}),
    "llama_rslora_patterns": ("llama3_tied", dict(r=4, lora_alpha=8, target_modules=ATTENTION + MLP, use_rslora=True, layers_to_transform=[1],
                                                  rank_pattern={"down_proj": 2, "self_attn.q_proj": 6}, alpha_pattern={"o_proj": 3, "down_proj": 5}),
                              0.3, "linear", {}),
    "llama_pissa": ("llama_mha", dict(r=4, lora_alpha=4, target_modules=["q_proj", "o_proj", "up_proj"], init_lora_weights="pissa"),
                    0.0, "linear", {}),
    "mistral_saved_modules": ("mistral_window", dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"],
                                                     modules_to_save=["lm_head", "embed_tokens"]), 0.4, "constant", {}),
    "qwen2_bias_all": ("qwen2_window", dict(r=4, lora_alpha=8, target_modules=ATTENTION, bias="all"), 0.5, "linear", {}),
    "qwen2_regex": ("qwen2_tied", dict(r=4, lora_alpha=16, target_modules=r".*\.(0|1)\.(self_attn\.[qk]_proj|mlp\.up_proj)"), 0.0, "cosine",
                    {"warmup_steps": 3}),
    "qwen3_dora_rslora": ("qwen3_biases", dict(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True, use_rslora=True,
                                               init_lora_weights="gaussian"), 0.3, "constant", {"max_grad_norm": 0.5}),
    "phi3_fused": ("phi3_longrope", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj", "o_proj"]), 0.5, "linear", {}),
    "phi3_dora": ("phi3_partial", dict(r=2, lora_alpha=8, target_modules="all-linear", use_dora=True), 0.0, "linear", {}),
    "deepseek_v3_attention": ("deepseek_v3", dict(r=4, lora_alpha=8, target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
                                                                                     "o_proj"]), 0.4, "linear", {}),
    "deepseek_v2_dora": ("deepseek_v2_lite", dict(r=3, lora_alpha=6, target_modules=["q_proj", "kv_b_proj", "o_proj"], use_dora=True,
                                                  use_rslora=True), 0.0, "constant", {}),
    # Adapters on embedding and head, apart or tied in the base. Phi-3's config has a padding token, whose row of the embedding gets no gradient.
    "llama_head_embeddings": ("llama_mha", dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head", "embed_tokens"], use_rslora=True), 0.3, "linear", {}),
    "llama_tied_head_embeddings": ("llama3_tied", dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head", "embed_tokens"],
                                                       rank_pattern={"lm_head": 2, "embed_tokens": 3}, alpha_pattern={"model.embed_tokens": 5}),
                                   0.3, "linear", {}),
    "qwen2_tied_head": ("qwen2_tied", dict(r=3, lora_alpha=6, target_modules=r"lm_head|.*\.1\.self_attn\.q_proj"), 0.0, "cosine", {}),
    "phi3_dora_head_embeddings": ("phi3_partial", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "lm_head", "embed_tokens"], use_dora=True), 0.3,
                                  "constant", {}),
    "phi3_saved_embeddings": ("phi3_partial", dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "lm_head"], modules_to_save=["embed_tokens"]), 0.0,
                              "linear", {}),
    # PEFT targets the experts' stacked parameters and the router here, and no dense or shared MLP.
    "deepseek_v2_all_linear": ("deepseek_v2_lite", dict(r=2, lora_alpha=4, target_modules="all-linear"), 0.0, "linear", {}),
    "deepseek_v3_all_linear": ("deepseek_v3", dict(r=2, lora_alpha=4, target_modules="all-linear"), 0.3, "linear", {}),
}


def make_sample(rng, vocab, most):
    ids = [rng.randrange(vocab) for _ in range(rng.randint(3, most))]
    ignored = rng.randint(1, len(ids) - 1)
    return {"input_ids": ids, "labels": [-100] * ignored + ids[ignored:], "position_ids": list(range(len(ids)))}


def make_rows(rng, vocab, share):
    rows = []
    for _ in range(STEPS * BATCH * ACCUMULATE):
        if rng.random() < share:
            samples = [make_sample(rng, vocab, 14) for _ in range(rng.randint(2, 3))]
            rows.append({key: sum((sample[key] for sample in samples), []) for key in samples[0]})
        else:
            sample = make_sample(rng, vocab, 22)
            if rng.random() < 0.7:
                del sample["position_ids"]
            if rng.random() < 0.3:
                sample["labels"] = list(sample["input_ids"])
            rows.append(sample)
    return rows


def samples_of(row):
    """The row's samples, as [(input_ids, labels)]."""
    starts = [index for index, position in enumerate(row.get("position_ids", [0])) if position == 0] + [len(row["input_ids"])]
    return [(row["input_ids"][first:last], row["labels"][first:last]) for first, last in zip(starts, starts[1:])]


def loss_sum(model, row):
    total = 0.0
    for ids, labels in samples_of(row):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        target = torch.tensor(labels[1:])
        if (target != -100).any():
            total = total + torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
    return total


def trained_tokens(rows):
    return sum(label != -100 for row in rows for _, labels in samples_of(row) for label in labels[1:])


def optimizer_of(model, training):
    """As Trainer.create_optimizer groups the parameters."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in decayed].append(parameter)
    return torch.optim.AdamW([{"params": groups[True], "weight_decay": training["weight_decay"]}, {"params": groups[False], "weight_decay": 0.0}],
                             lr=training["learning_rate"], betas=(0.9, 0.999), eps=1e-8)


def train(model, rows, training):
    """The losses and learning rates of all steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(model, training)
    scheduler = get_scheduler(training["lr_scheduler_type"], optimizer, num_warmup_steps=training["warmup_steps"], num_training_steps=STEPS)
    losses, rates = [], []
    for step in range(STEPS):
        batch = rows[step * BATCH * ACCUMULATE : (step + 1) * BATCH * ACCUMULATE]
        tokens, loss = trained_tokens(batch), 0.0
        for row in batch:
            part = loss_sum(model, row) / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(trained, training["max_grad_norm"])
        losses.append(loss)
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses, rates


def adapter_of(model):
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def tidy(adapter):
    """Takes out of PEFT's folder what differs from run to run and place to place."""
    (adapter / "README.md").unlink(missing_ok=True)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    for key in ("target_modules", "target_parameters"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def peft_model(family, options, dtype=torch.float32):
    torch.manual_seed(len(family))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_reference(FAMILIES / family, dtype), LoraConfig(lora_dropout=0.0, task_type="CAUSAL_LM", **options))
    for key, parameter in model.named_parameters():
        if "lora_B" in key and options.get("init_lora_weights") != "pissa":
            parameter.data.copy_(0.1 * torch.randn(parameter.shape))
    return model


def make_case(folder, name):
    family, options, share, schedule, overrides = CASES[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = peft_model(family, options)
    own_start = options.get("init_lora_weights") == "pissa"
    if not own_start:
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        tidy(folder / "adapter")
    training = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATE, "learning_rate": 2e-3, "lr_scheduler_type": schedule,
                "warmup_steps": 0, "max_steps": STEPS, "weight_decay": 0.01, "max_grad_norm": 1.0} | overrides
    rows = make_rows(random.Random(name), model.config.vocab_size, share)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))

    # PEFT refuses to begin PiSSA in float64, and its tensors are not compared.
    precise = None if own_start else peft_model(family, options, torch.float64)
    if precise is not None:
        precise.load_state_dict(model.state_dict())
        precise.double()
    losses, rates = train(model, rows, training)
    expected = {"model": family, "training": training, "losses": losses, "learning_rates": rates}
    final = adapter_of(model)
    rounding = {}
    if precise is not None:
        rounding["losses"] = max(abs(own - other) / other for own, other in zip(losses, train(precise, rows, training)[0]))
        rounding |= {key: ((final[key] - value).abs().max() / value.abs().max()).item() for key, value in adapter_of(precise).items()}
    worst = max(rounding, key=rounding.get, default="")
    if rounding.get(worst, 0.0) > MOST_ROUNDING:
        raise RuntimeError(f"{name}: float64 gives another {worst} by {rounding[worst]:.1e}; change the case")
    if own_start:
        expected["lora"] = options
    else:
        save_file(final, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size // 1024} KiB, loss {losses[0]:.4f} -> {losses[-1]:.4f}, {len(final)} tensors, rounding {rounding.get(worst, 0.0):.1e}", flush=True)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "peft")
    for name in sys.argv[2:] or CASES:
        make_case(root / name, name)


if __name__ == "__main__":
    main()
