"""Measure what this project's claims of speed are worth on this machine, and print a Markdown page.

    python benchmarks/speed.py [--model DIR] [--repeats N] [--out BENCHMARKS.md]

Ratios are measured in one process, both sides in turn, so that a busy machine slows both. Weights do not matter to
speed, so any model folder of the right size will do; by default it is the embedded model.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from unclip.clip import TextEncoding
from unclip.files import atomic_path
from unclip.models import DiffusionPrior, RecallPrior
from unclip.pipelines import UnCLIPTextToImagePipeline
from unclip.pipelines.stages import denoiser_of, image_seeds, sample_upsampler
from unclip.train.presets import preset

CAPTIONS = (
    "a red apple, 3D",
    "flat style woman firefighter with dark skin tone",
    "house",
    "a twemoji of a grinning cat with smiling eyes",
)
MEMORY = 20_000  # pictures that the recalling prior knows, about as many as the embedded model
Row = tuple[str, ...]


def seconds(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median time of each function, called in turn `repeats` times after one call to warm up."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, found in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def prior_step(pipe: UnCLIPTextToImagePipeline, candidates: int, repeats: int) -> list[Row]:
    """One step of the prior: with its text computed anew, and with three new tokens over the cached prefix."""
    text = pipe.clip.encode_text(list(CAPTIONS))
    tokens, mask, embeds = (x.repeat_interleave(candidates, 0) for x in (text.tokens, text.mask, text.embeds))
    x, t = torch.randn(len(tokens), pipe.prior.config.embed_dim), torch.full((len(tokens),), 0.5)
    prefix = pipe.prior.prefix(text.tokens, text.mask, text.embeds).repeat(candidates)
    whole, cached, once = seconds(
        [
            lambda: pipe.prior(x, t, text_tokens=tokens, text_mask=mask, text_embeds=embeds),
            lambda: pipe.prior(x, t, **prefix),
            lambda: pipe.prior.prefix(text.tokens, text.mask, text.embeds).repeat(candidates),
        ],
        repeats,
    )
    steps = pipe.settings().prior_num_inference_steps
    run = steps * whole / (once + steps * cached)
    return [
        ("prior step, text computed anew", milliseconds(whole), ""),
        ("prior step, cached prefix", milliseconds(cached), f"{whole / cached:.2f} × faster"),
        (
            "computing the prefix, once a run",
            milliseconds(once),
            f"a run of {steps} steps: {run:.2f} × faster",
        ),
    ]


def guidance_step(pipe: UnCLIPTextToImagePipeline, repeats: int) -> list[Row]:
    """One guided step of the decoder: both branches in one batch against two forwards, for one picture and four."""
    rows = []
    denoiser, side = denoiser_of(pipe.decoder), pipe.decoder.config.sample_size
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    for count in (1, 4):
        text = pipe.clip.encode_text(list(CAPTIONS[:count]))
        off = torch.zeros(count, dtype=torch.bool)
        cond = {
            "image_embeds": text.embeds,
            "noise_level": torch.zeros(count),
            "text_tokens": text.tokens,
            "text_mask": text.mask,
            "drop_image": off,
            "drop_text": off,
        }
        uncond = cond | {"drop_image": ~off, "drop_text": ~off}
        both = {name: torch.cat([cond[name], uncond[name]]) for name in cond}
        x = torch.randn(count, 3, side, side)

        def one(x: torch.Tensor, branch: dict[str, torch.Tensor]) -> object:
            return denoiser(x, alpha.expand(len(x)), sigma.expand(len(x)), branch)

        batched, twice = seconds(
            [
                lambda x=x, both=both: one(x.repeat(2, 1, 1, 1), both),
                lambda x=x, cond=cond, uncond=uncond: (one(x, cond), one(x, uncond)),
            ],
            repeats,
        )
        pictures = f"{count} picture{'s' if count > 1 else ''}"
        rows.append((f"guided decoder step, two forwards, {pictures}", milliseconds(twice), ""))
        ratio = f"{twice / batched:.2f} × faster"
        rows.append((f"guided decoder step, one batch, {pictures}", milliseconds(batched), ratio))
    return rows


@torch.enable_grad()
def prior_training(pipe: UnCLIPTextToImagePipeline, repeats: int) -> list[Row]:
    """Forward and backward of each prior at its preset's batch, on captions of 10 tokens, per caption."""
    dims = {name: pipe.prior.config[name] for name in ("embed_dim", "token_dim")}
    runs: list[Callable[[], object]] = []
    config = preset("prior", "emoji")
    captions, noises = config.batch_size, config.task["noises"]
    rows = captions * noises
    inputs = {
        "x": torch.randn(rows, dims["embed_dim"]),
        "t": torch.rand(rows) * 999,
        "text_tokens": torch.randn(captions, 10, dims["token_dim"]),
        "text_mask": torch.ones(captions, 10, dtype=torch.bool),
        "text_embeds": torch.nn.functional.normalize(torch.randn(captions, dims["embed_dim"]), dim=-1),
    }
    plain = DiffusionPrior(**config.model, **dims)
    runs.append(lambda: plain(**inputs).square().mean().backward())
    options = preset("prior-recall", "emoji").model
    options = options | {"key_dim": min(options["key_dim"], dims["embed_dim"])}
    recalling = RecallPrior(**options, **dims, memory_size=MEMORY)
    # In training the neighbours are looked up beforehand.
    near = torch.randint(MEMORY, (captions, options["neighbours"]))
    runs.append(lambda: recalling(**inputs, rows=near).square().mean().backward())
    whole, recall = (time / captions for time in seconds(runs, max(1, repeats // 10)))
    name = f"{captions} captions, {noises} noised z_i each"
    return [
        (f"prior, {name}", milliseconds(whole), ""),
        (f"prior-recall, {name}", milliseconds(recall), f"{recall / whole:.1f} × slower"),
    ]


def stages(pipe: UnCLIPTextToImagePipeline, repeats: int) -> list[Row]:
    """Each stage for one picture, with the model's default settings."""
    settings = pipe.settings()
    text, null = pipe.clip.encode_text([CAPTIONS[0]]), pipe.clip.encode_text([""])
    seeds = image_seeds([torch.Generator().manual_seed(0)], 1, 1)
    embeds = text.embeds
    steps = settings.upsampler_num_inference_steps

    call = pipe.check({})

    def prior() -> torch.Tensor:
        return pipe.embeds_of(text, null, seeds, call)

    def decoder() -> torch.Tensor:
        return pipe.decode(embeds, text, None, seeds, call)

    def encode() -> TextEncoding:
        return pipe.clip.encode_text([CAPTIONS[0]])

    named: list[tuple[str, Callable[[], object]]] = [
        ("CLIP text", encode),
        (f"prior, {settings.prior_num_inference_steps} steps", prior),
        (
            f"decoder, {settings.decoder_num_inference_steps} steps, {pipe.decoder.config.sample_size} px",
            decoder,
        ),
    ]
    for side, name in list(pipe.sizes.items())[1:]:
        network, scheduler = getattr(pipe, name), getattr(pipe, f"{name}_scheduler")
        small = torch.zeros(1, 3, side // network.config.factor, side // network.config.factor)

        def upsampler(network=network, scheduler=scheduler, small=small) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return sample_upsampler(network, scheduler, small, seeds, num_inference_steps=steps)

        named.append((f"upsampler to {side} px, {steps} steps", upsampler))
    times = seconds([run for _, run in named], max(1, repeats // 10))
    rows = [(name, milliseconds(value), "") for (name, _), value in zip(named, times, strict=True)]
    return [*rows, ("all stages", milliseconds(sum(times)), "")]


def milliseconds(value: float) -> str:
    """`12.3 ms`, or seconds from one second on."""
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def machine() -> str:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    import diffusers

    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}"
    )


@torch.no_grad()
def page(model: str | None, repeats: int) -> str:
    """All measurements as Markdown."""
    torch.set_flush_denormal(True)  # as in training
    pipe = UnCLIPTextToImagePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    candidates = pipe.settings().num_prior_candidates
    parts = [
        "# Benchmarks",
        f"Made by `python benchmarks/speed.py` on {machine()}. Medians of {repeats} calls, of {max(1, repeats // 10)} "
        "for whole stages; what is compared was called in turn in one process.",
        f"## Cached text in the prior\n\n{len(CAPTIONS)} captions, {candidates} candidates each.",
        table(("", "time", ""), prior_step(pipe, candidates, repeats)),
        "## Guidance in one batch",
        table(("", "time", ""), guidance_step(pipe, repeats)),
        "## Training a prior",
        table(("forward and backward", "time a caption", ""), prior_training(pipe, repeats)),
        "## Time for one picture",
        table(("stage", "time", ""), stages(pipe, repeats)),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="pipeline folder; the embedded model by default")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, help="Markdown file to write; printed when left out")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    text = page(options.model, options.repeats)
    if options.out is None:
        print(text)
    else:
        with atomic_path(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(options.out)


if __name__ == "__main__":
    main()
