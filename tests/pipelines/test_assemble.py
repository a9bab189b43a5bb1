"""From training runs to a pipeline folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip.clip import FrozenCLIP
from unclip.data import CaptionedImages
from unclip.errors import UserError
from unclip.models import Decoder, RecallPrior, RegressionPrior
from unclip.pipelines import UnCLIPTextToImagePipeline
from unclip.pipelines.assemble import assemble, default_scheduler


@pytest.fixture
def runs(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    """Folders as training leaves them: RUN/model."""
    names = ("clip", "prior", "decoder", "upsampler_256", "upsampler_1024")
    for name in names:
        shutil.copytree(tiny_model / name, tmp_path / "runs" / name / "model")
    return {name: tmp_path / "runs" / name for name in names}


def picture(pipe: UnCLIPTextToImagePipeline, **settings: float) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        "a red apple", size=64, generator=torch.Generator().manual_seed(0), output_type="pt", **settings
    )
    return made.images


def test_runs_become_a_model(
    tiny_pipeline: UnCLIPTextToImagePipeline, runs: dict[str, Path], tmp_path: Path
) -> None:
    defaults = {"decoder_num_inference_steps": 3, "noise_level": 0.1}
    out = assemble(**runs, out=tmp_path / "model", defaults=defaults)
    pipe = UnCLIPTextToImagePipeline.from_pretrained(out)
    assert list(pipe.sizes) == [16, 64, 256]
    assert pipe.settings().decoder_num_inference_steps == 3
    assert pipe.settings().noise_level == 0.1

    assert not [file for file in out.rglob("*.json") if str(tmp_path) in file.read_text()]

    stored = load_file(out / "decoder" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim >= 2} == {torch.float16}
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim < 2} == {torch.float32}
    assert pipe.decoder.dtype == pipe.clip.dtype == torch.float32
    for stage in ("prior", "decoder", "upsampler_256"):
        setattr(tiny_pipeline, f"{stage}_scheduler", getattr(pipe, f"{stage}_scheduler"))
    own = tiny_pipeline.settings()
    settings = {name: value for name, value in vars(own).items() if name not in defaults} | defaults
    assert_close(picture(pipe, **settings), picture(tiny_pipeline, **settings), atol=0.02, rtol=0)


def test_a_recalling_prior_serves_and_draws_what_it_remembers(
    tiny_pipeline: UnCLIPTextToImagePipeline, runs: dict[str, Path], tmp_path: Path
) -> None:
    """Its memory keeps its bits; one that trusts its guess gives back the embedding whose caption is asked for."""
    clip = tiny_pipeline.clip
    prior = RecallPrior(
        embed_dim=clip.embed_dim, token_dim=clip.token_dim, width=16, layers=1, heads=2, max_tokens=16,
        memory_size=3, key_dim=4, neighbours=2,
    )  # fmt: skip
    prior.set_embed_statistics(clip.embed_mean, clip.embed_std)
    captions = ["a red apple", "a blue house", "the green cat"]
    z_t = clip.encode_text(captions).embeds
    z_i = torch.nn.functional.normalize(torch.randn(3, clip.embed_dim), dim=-1)
    prior.memory.fit_keys(z_t, torch.arange(3))
    prior.memory.store(z_t, prior.normalize(z_i))
    torch.nn.init.constant_(prior.trust.bias, 40.0)
    with torch.no_grad():
        prior.guess.gains.bias.copy_(torch.tensor([0.0, 0.0, 6.0, -5.0]))
    prior.save_pretrained(tmp_path / "recall")
    out = assemble(**runs | {"prior": tmp_path / "recall"}, out=tmp_path / "model")
    pipe = UnCLIPTextToImagePipeline.from_pretrained(out)
    assert pipe.prior.memory.values.dtype is torch.uint8
    pipe.set_progress_bar_config(disable=True)
    settings = {"size": 16, "plain_words": False, "prior_guidance_scale": 1, "num_prior_candidates": 1}
    made = pipe(captions, generator=[torch.Generator().manual_seed(i) for i in range(3)], **settings)
    assert torch.nn.functional.cosine_similarity(made.image_embeds, z_i).min() > 0.98


def test_fewer_word_pieces(runs: dict[str, Path], tmp_path: Path, real: CaptionedImages) -> None:
    with pytest.raises(UserError, match="word_pieces and data go together"):
        assemble(**runs, out=tmp_path / "model", word_pieces=5)
    out = assemble(**runs, out=tmp_path / "model", word_pieces=5, data=real.path)
    before, after = (
        FrozenCLIP.from_pretrained(path).encode_text(real.captions(0)).embeds
        for path in (runs["clip"] / "model", out / "clip")
    )
    assert_close(after, before, atol=0.01, rtol=0)


def test_a_part_is_replaced(runs: dict[str, Path], tmp_path: Path) -> None:
    """A model's own folders serve as parts, and the folder it lies in may be the output."""
    parts = {name: runs[name] for name in ("clip", "prior", "decoder")}
    model = assemble(**parts, out=tmp_path / "model", dtype=torch.float32)
    assert list(UnCLIPTextToImagePipeline.from_pretrained(model).sizes) == [16]
    again = assemble(
        clip=model / "clip",
        prior=model / "prior",
        decoder=model / "decoder",
        upsampler_256=runs["upsampler_256"],
        out=model,
        dtype=torch.float32,
    )
    assert list(UnCLIPTextToImagePipeline.from_pretrained(again).sizes) == [16, 64]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_wrong_parts(runs: dict[str, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    parts = {name: runs[name] for name in ("clip", "prior", "decoder")}
    out = tmp_path / "model"
    with pytest.raises(UserError, match=r"nowhere/config.json is missing"):
        assemble(**{**parts, "prior": tmp_path / "nowhere"}, out=out)
    with pytest.raises(UserError, match=r"expected in .*: DiffusionPrior.*, found: Decoder"):
        assemble(**{**parts, "prior": runs["decoder"]}, out=out)
    regression = RegressionPrior(embed_dim=12, token_dim=20, layers=0)
    regression.save_pretrained(tmp_path / "regression")
    with pytest.raises(
        UserError, match=r"DiffusionPrior or RecallPrior, found: RegressionPrior"
    ):  # --other-prior
        assemble(**{**parts, "prior": tmp_path / "regression"}, out=out)
    small = Decoder(sample_size=16, patch_size=4, width=16, layers=1, heads=2, embed_dim=8, token_dim=20)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(
        UserError, match="decoder was trained on another CLIP: its embed_dim is 8, CLIP's is 12"
    ):
        assemble(**{**parts, "decoder": tmp_path / "small"}, out=out)
    with pytest.raises(UserError, match="give that one too"):
        assemble(**parts, out=out, upsampler_1024=runs["upsampler_1024"])
    damaged = shutil.copytree(runs["decoder"] / "model", tmp_path / "damaged")
    (damaged / "config.json").write_text(
        (damaged / "config.json").read_text().replace('"width": 16', '"width": 32')
    )
    with pytest.raises(UserError, match="cannot load the Decoder"):
        assemble(**{**parts, "decoder": damaged}, out=out)
    with pytest.raises(UserError, match="unknown setting 'steps'"):
        assemble(**parts, out=out, defaults={"steps": 3})
    with pytest.raises(UserError, match="must be a whole number"):
        assemble(**parts, out=out, defaults={"decoder_num_inference_steps": 0})
    with pytest.raises(UserError, match="must be a whole number"):
        assemble(**parts, out=out, defaults={"decoder_num_inference_steps": 3.0})
    assert not out.exists()
    with pytest.raises(UserError, match="holds something that is no pipeline"):
        assemble(**parts, out=tmp_path)
    assert (tmp_path / "runs").exists()
    assert not [w for w in recwarn if "differs from CLIP's" in str(w.message)]


def test_a_stranger_is_noticed(
    tiny_pipeline: UnCLIPTextToImagePipeline, runs: dict[str, Path], tmp_path: Path
) -> None:
    decoder = tiny_pipeline.decoder
    decoder.set_embed_statistics(-decoder.embed_mean, decoder.embed_std)
    decoder.save_pretrained(tmp_path / "stranger")
    with pytest.warns(UserWarning, match="mean image embedding of the decoder differs from CLIP's"):
        assemble(
            clip=runs["clip"], prior=runs["prior"], decoder=tmp_path / "stranger", out=tmp_path / "model"
        )


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        ("flow", "FlowMatchEulerDiscreteScheduler"),
        ("cosine", "DDPMScheduler"),
        ("linear", "DDPMScheduler"),
    ],
)
def test_default_schedulers(tiny_decoder: Decoder, schedule: str, kind: str) -> None:
    tiny_decoder.register_to_config(schedule=schedule)
    assert type(default_scheduler(tiny_decoder)).__name__ == kind
