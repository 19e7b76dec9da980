"""The training loop."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkdext.data.images import check_images, find_images, read_image
from mkdext.data.patches import ImagePairs, PatchSampler, make_pair
from mkdext.metrics.image_quality import psnr_y, ssim_y, to_uint8
from mkdext.models.registry import create_model
from mkdext.training.options import TrainOptions
from mkdext.training.run_directory import RunDirectory
from mkdext.training.schedule import cosine_lr


def train(options: TrainOptions) -> None:
    run = RunDirectory(options.out)
    config = {
        k: [str(x) for x in v] if isinstance(v, tuple) else (str(v) if isinstance(v, Path) else v)
        for k, v in dataclasses.asdict(options).items()
        if k != "out"
    }
    paths = [p for folder in options.train_dir for p in find_images(folder)]
    good, bad = check_images(paths, options.patch_size * options.scale)
    for image in bad:
        print(image)
    pairs = ImagePairs(good, options.scale)
    sampler = PatchSampler(
        pairs, options.scale, options.patch_size, options.batch_size, options.seed
    )
    val = {
        folder.name: [make_pair(read_image(p), options.scale) for p in find_images(folder)]
        for folder in options.val_dir
    }
    torch.manual_seed(options.seed)
    model = create_model(options.student, options.scale).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), options.lr, betas=(0.9, 0.999))
    first = 0
    if run.open(config):
        state = run.load_state()
        model.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        run.keep_metrics_until(first)
    start = time.monotonic()
    for step, (lr, hr) in enumerate(sampler.batches(first, options.iterations), first):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(
                step, options.iterations, options.lr, options.lr_min, options.warmup
            )
        lr = lr.contiguous(memory_format=torch.channels_last)
        loss = nn.functional.l1_loss(model(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            run.add_metrics({"step": done, "loss": loss.item(), "t": time.monotonic() - start})
        if done % options.validate_every == 0 or done == options.iterations:
            scores = {name: validate(model, pairs, options.scale) for name, pairs in val.items()}
            run.add_metrics({"step": done, "validation": scores})
            print(done, scores, time.monotonic() - start, flush=True)
        if done % options.checkpoint_every == 0 or done == options.iterations:
            state = {
                "step": done,
                "student": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            run.save_state(state, model.state_dict())


def validate(model: nn.Module, pairs: list[tuple[Tensor, Tensor]], scale: int) -> dict[str, Any]:
    psnrs, ssims = [], []
    with torch.inference_mode():
        for lr, hr in pairs:
            sr = to_uint8(model(lr[None].float() / 255)[0])
            psnrs.append(psnr_y(sr, hr, scale))
            ssims.append(ssim_y(sr, hr, scale))
    return {"psnr_y": sum(psnrs) / len(psnrs), "ssim_y": sum(ssims) / len(ssims)}
