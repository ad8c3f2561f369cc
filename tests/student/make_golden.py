#!/usr/bin/env python3
"""Writes golden.h: what transformers' schedules and torch's AdamW and clipping give. Needs torch and transformers.

    python tests/student/make_golden.py > tests/student/golden.h && clang-format -i tests/student/golden.h
"""

import torch
from transformers import get_scheduler


def numbers(values):
    return "{" + ", ".join("%.17g" % v for v in values) + "}"


print("// Made by make_golden.py.\n#pragma once\n\n#include <string>\n#include <vector>\n\nnamespace retort::golden {\n")
print("struct Schedule {\n  std::string name;\n  int total_steps;\n  int warmup_steps;\n  std::vector<double> rates;\n};\n")
print("// learning_rate=2e-4.\ninline const std::vector<Schedule> kSchedules = {")
for name in ["linear", "cosine", "constant", "constant_with_warmup"]:
    for total, warmup in [(10, 0), (10, 3), (7, 1)]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
        rates = []
        for _ in range(total):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        print('  {"%s", %d, %d, %s},' % (name, total, warmup, numbers(rates)))
print("};\n")

# Gradients large and small, clipped at 1.0, with weight decay.
torch.manual_seed(0)
parameter = torch.nn.Parameter(torch.randn(13))
print("inline const std::vector<double> kStart = %s;\n" % numbers(parameter.tolist()))
optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, foreach=False)
print("struct AdamWStep {\n  std::vector<double> gradient;\n  double norm;\n  std::vector<double> parameters;\n};\n")
print("// lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, max_norm=1.0.\ninline const std::vector<AdamWStep> kAdamWSteps = {")
for step in range(5):
    parameter.grad = torch.randn(13) * 10.0 ** (-step)
    gradient = parameter.grad.tolist()
    norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    optimizer.step()
    print("  {%s, %.17g, %s}," % (numbers(gradient), norm, numbers(parameter.tolist())))
print("};\n\n}  // namespace retort::golden")
