"""Presets: functions that return the configuration of a stage.

Each docstring gives the command, the hardware, the hours and the figure to expect. Keys are overridden on the command
line as `key=value`. A preset says only what differs from the defaults of `TrainConfig`, the task and the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from unclip.errors import UserError

from .config import TrainConfig

# Enlarging drawings is nearly deterministic: an upsampler that guesses well from pure noise needs no second step.
ONE_STEP = {"time_mean": 4.0, "time_std": 1.5, "l1_weight": 1.0, "picture_steps": 1}


def clip_emoji() -> TrainConfig:
    """CLIP at 96 px, 26M parameters (11M of them trained), from MiniLM and EfficientNet-lite0; needs the `data` extra.

    unclip train clip --preset emoji --data DATA --output RUN

    45 minutes on 2 cores (50 samples/s). Not run in one go: the embedded one was made in three runs of 850 steps in all
    (docs/experiments.md): text-to-image retrieval on held-out pictures, top-1 / top-5: style .39 / .71, tone .39 / .77,
    attribute .67 / .96, unseen .42 / .71, paraphrases .16 / .33.
    """
    return TrainConfig(
        stage="clip",
        preset="emoji",
        steps=700,
        batch_size=192,
        learning_rate=1e-3,
        warmup_steps=40,
        decay="cosine",
        decay_fraction=1.0,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        ema_decay=0.98,
        log_every_steps=20,
        num_workers=1,
        model={"layout_dims": 192, "embed_dim": 384},
    )


def clip_tiny() -> TrainConfig:
    """CLIP at 32 px from scratch for tests: seconds on a CPU.

    unclip train clip --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return TrainConfig(
        stage="clip",
        preset="tiny",
        steps=30,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=5,
        log_every_steps=10,
        model={
            "embed_dim": 16,
            "image_size": 32,
            "image_model": "test_efficientnet",
            "layout_dims": 8,
            "text": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
            },
        },
        task={
            "text_tower": "scratch",
            "image_tower": "scratch",
            "vocab_size": 1000,
            "scene_pool": 8,
            "gallery": 32,
        },
    )


def decoder_emoji() -> TrainConfig:
    """Decoder at 64 px, 12.0M parameters.

    unclip train decoder --preset emoji --data DATA --output RUN cache=CACHE clip=CLIP

    1.5 hours on 2 cores (30 samples/s). Not run in one go: the embedded one was made in six runs of some 20,000 steps
    in all (docs/experiments.md): a loss of .051 on held-out pictures before the last run, which made it sharper
    (`task.l1_weight=0.5 task.time_mean=1`); four steps draw as well as thirty. More than half of the training times are
    noisy ones (median t = .57): what a picture is and where its parts are is decided there.
    """
    return TrainConfig(
        stage="decoder",
        preset="emoji",
        steps=10_000,
        batch_size=16,
        learning_rate=5e-4,
        decay_fraction=0.4,
        validate_every_steps=1_000,
        model={"sample_size": 64, "patch_size": 8, "width": 256, "layers": 8, "heads": 4},
        task={"time_mean": 0.3, "min_sigma": 0.1, "clean_share": 0.7},
    )


def decoder_tiny() -> TrainConfig:
    """Decoder at 16 px for tests: seconds on a CPU; random CLIP.

    unclip train decoder --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return TrainConfig(
        stage="decoder",
        preset="tiny",
        clip="random",
        steps=50,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=5,
        log_every_steps=10,
        model={"sample_size": 16, "patch_size": 4, "draft_size": 4, "width": 32, "layers": 2, "heads": 2},
        task={"held_out": 8, "pictures": 4, "picture_steps": 3},
    )


def prior_emoji() -> TrainConfig:
    """Diffusion prior, 5.1M parameters.

    unclip train prior --preset emoji --data DATA --output RUN cache=CACHE clip=CLIP

    45 minutes on 2 cores (200 samples/s). Not run in one go: the embedded one had three runs of 17,700 steps in all
    (docs/experiments.md): cosine of a sample to the true z_i .77 (of z_t .38, of the mean .57), and the true one is the
    nearest of 256 in 70 % of cases; all on pictures held out at random, where the last 9,000 steps changed nothing.
    """
    return TrainConfig(
        stage="prior",
        preset="emoji",
        steps=8_000,
        batch_size=64,
        learning_rate=1.2e-3,
        decay_fraction=0.5,
        weight_decay=0.06,
        betas=(0.9, 0.96),
        log_every_steps=100,
        validate_every_steps=1_000,
        model={"width": 256, "layers": 6, "heads": 4},
        task={"noises": 2, "time_skew": 3.0},
    )


def prior_tiny() -> TrainConfig:
    """Prior for tests: seconds on a CPU; random CLIP.

    unclip train prior --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return TrainConfig(
        stage="prior",
        preset="tiny",
        clip="random",
        steps=50,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=5,
        log_every_steps=10,
        model={"width": 32, "layers": 2, "heads": 2},
        task={"held_out": 8, "sampling_steps": 3},
    )


def prior_recall_emoji() -> TrainConfig:
    """Diffusion prior beside a memory of the training pictures, 5.4M parameters and a byte for each stored number.

    unclip train prior-recall --preset emoji --data DATA --output RUN cache=CACHE clip=CLIP initial=PRIOR

    The embedded one, from a trained `prior`: 3,000 steps in 40 minutes on one core (80 captions/s), then 900 with
    scenes (docs/experiments.md). Samples for captions trained on have a cosine of .98 to the true z_i.
    """
    return replace(
        prior_emoji(),
        stage="prior-recall",
        steps=3_000,
        learning_rate=1e-3,
        validate_every_steps=500,
        model={"width": 256, "layers": 6, "heads": 4, "neighbours": 8, "key_dim": 96},
    )


def prior_recall_tiny() -> TrainConfig:
    """Recalling prior for tests: seconds on a CPU; random CLIP.

    unclip train prior-recall --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    model = {"width": 32, "layers": 2, "heads": 2, "neighbours": 3, "key_dim": 4, "least_likeness": 0.99}
    return replace(prior_tiny(), stage="prior-recall", model=model)


def prior_ar_emoji() -> TrainConfig:
    """Autoregressive prior, 1.0M parameters and as much again in tables.

    unclip train prior-ar --preset emoji --data DATA --output RUN cache=CACHE clip=CLIP

    41 minutes on one core (44 captions/s). On pictures held out at random: 3.46 nats a code; what it draws has a cosine
    of .722 to the true z_i, which is the nearest of 256 in 55 % of cases.
    """
    return TrainConfig(
        stage="prior-ar",
        preset="emoji",
        steps=3_000,
        batch_size=32,
        learning_rate=2e-3,
        warmup_steps=100,
        decay_fraction=0.5,
        weight_decay=0.04,
        betas=(0.9, 0.96),
        ema_decay=0.995,
        validate_every_steps=500,
        model={"width": 128, "layers": 4, "heads": 4, "components": 128, "buckets": 64},
    )


def prior_ar_tiny() -> TrainConfig:
    """Autoregressive prior for tests: seconds on a CPU; random CLIP.

    unclip train prior-ar --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return TrainConfig(
        stage="prior-ar",
        preset="tiny",
        clip="random",
        steps=50,
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=5,
        log_every_steps=10,
        model={"width": 32, "layers": 2, "heads": 2, "components": 6, "buckets": 8, "similarity_buckets": 4},
        task={"held_out": 8},
    )


def prior_regression_emoji() -> TrainConfig:
    """Regression prior, 0.7M parameters beside a fitted matrix of 0.15M numbers.

    unclip train prior-regression --preset emoji --data DATA --output RUN cache=CACHE clip=CLIP

    20 minutes on one core, other work on the next (620 captions/s). On pictures held out at random: cosine to the true
    z_i .774, which is the nearest of 256 in 75 % of cases; the linear map alone .752 and 60 %.
    """
    return TrainConfig(
        stage="prior-regression",
        preset="emoji",
        steps=4_000,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=100,
        decay_fraction=0.5,
        weight_decay=0.06,
        betas=(0.9, 0.96),
        ema_decay=0.995,
        log_every_steps=100,
        validate_every_steps=500,
        model={"width": 128, "layers": 3, "heads": 4, "dropout": 0.15},
    )


def prior_regression_linear() -> TrainConfig:
    """The linear prior of Kandinsky's ablation: one matrix, fitted in closed form in seconds; nothing is trained.

    unclip train prior-regression --preset linear --data DATA --output RUN cache=CACHE

    On pictures held out at random: cosine to the true z_i .752, the nearest of 256 in 60 % of cases.
    """
    return replace(prior_regression_emoji(), preset="linear", steps=0, model={"layers": 0})


def prior_regression_tiny() -> TrainConfig:
    """Regression prior for tests: seconds on a CPU; random CLIP.

    unclip train prior-regression --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return replace(
        prior_tiny(),
        stage="prior-regression",
        model={"width": 32, "layers": 2, "heads": 2},
        task={"held_out": 8},
    )


def upsampler_256_emoji() -> TrainConfig:
    """Upsampler 64 -> 256, 1.1M parameters.

    unclip train upsampler-256 --preset emoji --data DATA --output RUN

    40 minutes on one core (20 crops/s). Nearly all training times are noise, and the absolute error is trained for,
    too: one step draws sharp edges. The embedded one had 1,200 steps at all times, then 2,200 like these: 32.3 dB on
    held-out crops in one step, bicubic 26.2.
    """
    return TrainConfig(
        stage="upsampler-256",
        preset="emoji",
        steps=6_000,
        batch_size=8,
        learning_rate=5e-4,
        warmup_steps=200,
        decay_fraction=0.6,
        num_workers=1,
        validate_every_steps=1_000,
        model={"factor": 4, "channels": [64, 96]},
        task=dict(ONE_STEP),
    )


def upsampler_1024_emoji() -> TrainConfig:
    """Upsampler 256 -> 1024, on crops drawn from SVG.

    unclip train upsampler-1024 --preset emoji --data DATA --output RUN

    50 minutes on one core (9 crops/s); `task.before=UPSAMPLER_256` lets it learn from what the stage before makes. The
    embedded one had 4,750 steps at all times, then 1,700 like these: 38.3 dB on held-out crops in one step, bicubic
    33.4.
    """
    return TrainConfig(
        stage="upsampler-1024",
        preset="emoji",
        steps=6_000,
        batch_size=4,
        learning_rate=5e-4,
        warmup_steps=200,
        decay_fraction=0.6,
        num_workers=1,
        validate_every_steps=1_000,
        model={"factor": 4, "channels": [32, 48]},
        # The glossy pictures are full of filters: a second each at this size.
        task={"crop": 256, "skip_styles": ["glossy"], **ONE_STEP},
    )


def _upsampler_tiny(stage: str, crop: int) -> TrainConfig:
    return TrainConfig(
        stage=stage,
        preset="tiny",
        steps=30,
        batch_size=4,
        learning_rate=2e-3,
        warmup_steps=5,
        log_every_steps=10,
        model={"factor": 4, "channels": [8, 16], "blocks": 1, "embed_channels": 16, "skin_channels": 4},
        task={"crop": crop, "held_out": 4, "pictures": 2, "picture_steps": 2},
    )


def upsampler_256_tiny() -> TrainConfig:
    """Upsampler 64 -> 256 for tests: seconds on a CPU.

    unclip train upsampler-256 --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return _upsampler_tiny("upsampler-256", crop=32)


def upsampler_1024_tiny() -> TrainConfig:
    """Upsampler 256 -> 1024 for tests: seconds on a CPU.

    unclip train upsampler-1024 --preset tiny --data tests/fixtures/emoji-fixture.tar --output RUN
    """
    return _upsampler_tiny("upsampler-1024", crop=64)


PRESETS: dict[tuple[str, str], Callable[[], TrainConfig]] = {
    ("clip", "emoji"): clip_emoji,
    ("clip", "tiny"): clip_tiny,
    ("prior", "emoji"): prior_emoji,
    ("prior", "tiny"): prior_tiny,
    ("decoder", "emoji"): decoder_emoji,
    ("decoder", "tiny"): decoder_tiny,
    ("prior-recall", "emoji"): prior_recall_emoji,
    ("prior-recall", "tiny"): prior_recall_tiny,
    ("prior-ar", "emoji"): prior_ar_emoji,
    ("prior-ar", "tiny"): prior_ar_tiny,
    ("prior-regression", "emoji"): prior_regression_emoji,
    ("prior-regression", "linear"): prior_regression_linear,
    ("prior-regression", "tiny"): prior_regression_tiny,
    ("upsampler-256", "emoji"): upsampler_256_emoji,
    ("upsampler-256", "tiny"): upsampler_256_tiny,
    ("upsampler-1024", "emoji"): upsampler_1024_emoji,
    ("upsampler-1024", "tiny"): upsampler_1024_tiny,
}


def preset(stage: str, name: str) -> TrainConfig:
    """The configuration of a preset.

    Raises:
        UserError: the stage has no preset of that name.
    """
    if (stage, name) not in PRESETS:
        stages = sorted({known for known, _ in PRESETS})
        if stage not in stages:
            raise UserError(f"unknown stage {stage!r}: expected one of {', '.join(stages)}")
        names = ", ".join(known for other, known in PRESETS if other == stage)
        raise UserError(f"unknown preset {name!r} of stage {stage}: expected one of {names}")
    return PRESETS[stage, name]()
