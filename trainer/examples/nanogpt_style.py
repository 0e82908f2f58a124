"""A script in nanoGPT's manner, made exact: the lines marked with an arrow are new.

Its habits: an endless loop with its own counter, batches drawn at random from one long array,
a learning rate set by hand, a GradScaler. What it had before, and what destroys the only
checkpoint when it is killed in mid-save, was

    if iter_num % eval_interval == 0:
        torch.save(checkpoint, os.path.join(out_dir, "ckpt.pt"))
"""

from __future__ import annotations

import math
import os

import torch
from torch import nn

from spotd_trainer import Session  # <---

max_iters = int(os.environ.get("MAX_ITERS", "300"))
batch_size, block_size, width = 16, 32, 64
learning_rate, warmup_iters = 1e-3, 20

torch.manual_seed(1337)
torch.set_num_threads(1)
data = torch.frombuffer(bytearray(open(os.__file__, "rb").read()), dtype=torch.uint8)


def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(data) - block_size - 1, (batch_size,)).tolist()
    x = torch.stack([data[i : i + block_size].long() for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + block_size].long() for i in starts])
    return x, y


def get_lr(it: int) -> float:
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    return learning_rate * 0.5 * (1 + math.cos(math.pi * it / max_iters))


model = nn.Sequential(nn.Embedding(256, width), nn.Dropout(0.1), nn.GELU(), nn.Linear(width, 256))
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
scaler = torch.amp.GradScaler("cpu", enabled=False)

# No loader: the batches come from the RNGs, which the session owns too.
with Session(model, optimizer, scaler=scaler, total_steps=max_iters) as session:  # <---
    while not session.done:  # <--- was: while True
        for group in optimizer.param_groups:
            group["lr"] = get_lr(session.step)  # <--- was: iter_num
        x, y = get_batch()
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        session.advance(loss)  # <--- was: iter_num += 1, and torch.save

total = sum(parameter.double().sum() for parameter in model.parameters())
print(f"step {session.step}, sum of weights {float(total):.17g}")
