"""Pickled unCLIP checkpoints as safetensors: kakaobrain's own files, and the published layout with pickles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip import cli
from unclip.errors import UserError
from unclip.pipelines.convert import convert
from unclip.pipelines.loading import read_index
from unclip.pipelines.original_names import decoder_of, prior_of, upsamplers_of
from unclip.pipelines.published import check_published

from .original_karlo import (
    DECODER,
    EMBED,
    EXTRA,
    PRIOR,
    STATISTICS,
    TOKENS,
    UPSAMPLER,
    Folders,
    Runner,
    State,
    decoder_state,
    no_numbers,
    originals,
    prior_state,
    random_numbers,
    under,
    unet_state,
)


@pytest.fixture(scope="module")
def converted(karlo_files: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(karlo_files[0], tmp_path_factory.mktemp("out") / "karlo", clip=karlo_files[1])


def inside(state: State, prefix: str) -> Runner:
    start = f"{prefix}."
    return Runner({n.removeprefix(start): tensor for n, tensor in state.items() if n.startswith(start)})


def test_prior_is_the_original(converted: Path, karlo_files: Folders) -> None:
    prior = PriorTransformer.from_pretrained(converted / "prior").eval()
    make, t = random_numbers(9), torch.tensor([3, 700])
    x, z_t, tokens = make(2, EMBED), make(2, EMBED), make(2, TOKENS, EMBED)
    with torch.no_grad():
        found = prior(x, t, z_t, tokens, attention_mask=torch.ones(2, TOKENS, dtype=torch.bool))
        assert_close(
            found.predicted_image_embedding, inside(originals()[PRIOR], "model").prior(x, t, z_t, tokens)
        )
    mean, deviation = torch.load(karlo_files[0] / STATISTICS, weights_only=True)
    assert_close(prior.post_process_latents(x), x * deviation + mean)


def test_decoder_is_the_original(converted: Path) -> None:
    text_proj = pytest.importorskip("diffusers.pipelines.deprecated.unclip.text_proj").UnCLIPTextProjModel
    project = text_proj.from_pretrained(converted / "text_proj").eval()
    decoder = UNet2DConditionModel.from_pretrained(converted / "decoder").eval()
    make, t = random_numbers(9), torch.tensor([3, 700])
    x, z_i, z_t = make(2, 3, 8, 8), make(2, EMBED), make(2, EMBED)
    tokens = make(2, TOKENS, EMBED)
    original = inside(originals()[DECODER], "model")
    with torch.no_grad():
        context, added = project(
            image_embeddings=z_i,
            prompt_embeds=z_t,
            text_encoder_hidden_states=tokens,
            do_classifier_free_guidance=False,
        )
        found = decoder(x, t, encoder_hidden_states=context, class_labels=added).sample
        assert_close(found, original.decoder(x, t, 2, z_i, z_t, tokens, EXTRA), rtol=1e-4, atol=1e-4)
    assert_close(project.learned_classifier_free_guidance_embeddings.data, original.state["cf_param"])


@pytest.mark.parametrize(
    ("part", "prefix"), [("super_res_first", "model_first_steps"), ("super_res_last", "model_last_step")]
)
def test_upsamplers_are_the_originals(converted: Path, part: str, prefix: str) -> None:
    x, t = random_numbers(9)(2, 6, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        found = UNet2DModel.from_pretrained(converted / part).eval()(x, t).sample
        wanted = inside(originals()[UPSAMPLER], prefix).unet(x, t, depth=1)
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_folder_is_as_published(converted: Path, karlo_files: Folders) -> None:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    index = read_index(converted)
    check_published(converted, index)
    assert index["text_proj"] == ["unclip", "UnCLIPTextProjModel"]
    assert (index["_class_name"], len(index)) == ("UnCLIPPipeline", 12)
    prior = json.loads((converted / "prior_scheduler" / "scheduler_config.json").read_text())
    assert (prior["prediction_type"], prior["clip_sample_range"]) == ("sample", 5.0)
    decoder = json.loads((converted / "decoder_scheduler" / "scheduler_config.json").read_text())
    assert (decoder["variance_type"], decoder["clip_sample_range"]) == ("learned_range", 1.0)
    _, report = CLIPTextModelWithProjection.from_pretrained(
        converted / "text_encoder", output_loading_info=True
    )
    assert not any((report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"]))
    whole, part = (
        load_file(path / "model.safetensors") for path in (karlo_files[1], converted / "text_encoder")
    )
    assert part.keys() == {name for name in whole if name.startswith("text_")}
    assert_close(part, {name: whole[name] for name in part}, rtol=0, atol=0)
    tokenizer = CLIPTokenizer.from_pretrained(converted / "tokenizer")
    words = tokenizer(["ab c"], padding="max_length", max_length=tokenizer.model_max_length).input_ids[0]
    assert len(words) == TOKENS
    assert words[-2:] == [0, 0]


def test_variations_have_no_prior(karlo_files: Folders, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    source, clip = shutil.copytree(karlo_files[0], tmp_path / "originals"), karlo_files[1]
    (source / PRIOR).unlink()
    out = convert(source, tmp_path / "out", clip=clip, variations=True, dtype=torch.float16)
    check_published(out, index := read_index(out))
    assert index["_class_name"] == "UnCLIPImageVariationPipeline"
    assert "prior" not in index
    _, report = CLIPVisionModelWithProjection.from_pretrained(out / "image_encoder", output_loading_info=True)
    assert not any((report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"]))
    tensors = load_file(out / "decoder" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


# Karlo's own names, and what diffusers' conversion made of them.
KNOWN = {
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.3.0.out_layers.3.bias": "down_blocks.0.resnets.2.conv2.bias",
    "input_blocks.4.0.in_layers.2.weight": "down_blocks.0.downsamplers.0.conv1.weight",
    "input_blocks.5.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.5.1.norm.bias": "down_blocks.1.attentions.0.group_norm.bias",
    "input_blocks.12.0.emb_layers.1.weight": "down_blocks.2.downsamplers.0.time_emb_proj.weight",
    "input_blocks.15.1.proj_out.bias": "down_blocks.3.attentions.2.to_out.0.bias",
    "middle_block.0.out_layers.0.weight": "mid_block.resnets.0.norm2.weight",
    "middle_block.1.norm.weight": "mid_block.attentions.0.group_norm.weight",
    "middle_block.2.in_layers.2.weight": "mid_block.resnets.1.conv1.weight",
    "output_blocks.0.0.skip_connection.bias": "up_blocks.0.resnets.0.conv_shortcut.bias",
    "output_blocks.3.1.proj_out.bias": "up_blocks.0.attentions.3.to_out.0.bias",
    "output_blocks.3.2.in_layers.2.weight": "up_blocks.0.upsamplers.0.conv1.weight",
    "output_blocks.11.2.out_layers.3.weight": "up_blocks.2.upsamplers.0.conv2.weight",
    "output_blocks.15.0.skip_connection.weight": "up_blocks.3.resnets.3.conv_shortcut.weight",
    "out.0.weight": "conv_norm_out.weight",
    "out.2.bias": "conv_out.bias",
}
KNOWN_PRIOR = {
    "clip_img_proj.weight": "proj_in.weight",
    "text_emb_proj.weight": "embedding_proj.weight",
    "text_enc_proj.bias": "encoder_hidden_states_proj.bias",
    "prd_emb": "prd_embedding",
    "out_proj.weight": "proj_to_clip_embeddings.weight",
    "transformer.resblocks.19.attn.c_proj.weight": "transformer_blocks.19.attn1.to_out.0.weight",
    "transformer.resblocks.0.ln_2.weight": "transformer_blocks.0.norm3.weight",
    "transformer.resblocks.7.mlp.c_fc.weight": "transformer_blocks.7.ff.net.0.proj.weight",
}


def test_karlo_at_its_own_size() -> None:
    """On the meta device: the configurations are those that were published."""
    channels, attends = (320, 640, 960, 1280), (False, True, True, True)
    own = decoder_state(
        no_numbers, clip=768, extra=4, context=1536, channels=channels, depth=3, attends=attends
    )
    decoder, text_proj = decoder_of(under("model", own))
    assert [decoder.tensors[name] is own[former] for former, name in KNOWN.items()] == [True] * len(KNOWN)
    block = "CrossAttn{}Block2D"
    assert decoder.config == decoder.config | {
        "sample_size": 64, "in_channels": 3, "out_channels": 6, "layers_per_block": 3,
        "block_out_channels": [*channels], "attention_head_dim": 64, "cross_attention_dim": 1536,
        "down_block_types": ["ResnetDownsampleBlock2D", *["Simple" + block.format("Down")] * 3],
        "up_block_types": [*["Simple" + block.format("Up")] * 3, "ResnetUpsampleBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "class_embed_type": "identity",
        "resnet_time_scale_shift": "scale_shift",
    }  # fmt: skip
    assert text_proj.config == {
        "clip_extra_context_tokens": 4, "clip_embeddings_dim": 768, "time_embed_dim": 1280,
        "cross_attention_dim": 1536,
    }  # fmt: skip
    own = prior_state(no_numbers, width=2048, layers=20, clip=768, tokens=77)
    prior = prior_of(under("model", own) | {"causal_mask": no_numbers(1)}, no_numbers(768), no_numbers(768))
    assert all(prior.tensors[name] is own[former] for former, name in KNOWN_PRIOR.items())
    assert prior.config == {
        "num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20, "embedding_dim": 768,
        "num_embeddings": 77, "additional_embeddings": 4,
    }  # fmt: skip
    own = unet_state(no_numbers, channels=channels, depth=3, attends=(False,) * 4, sides=(6, 3))
    first, last = upsamplers_of(under("model_first_steps", own) | under("model_last_step", own))
    assert first.config == last.config
    assert first.config["down_block_types"] == ["ResnetDownsampleBlock2D"] * 4
    assert (first.config["resnet_time_scale_shift"], first.config["layers_per_block"]) == ("default", 3)


def pickled(folder: Path, source: Path, variant: str = "") -> Path:
    """A converted checkpoint with pickles, as it was published."""
    shutil.copytree(source, folder)
    for path in folder.rglob("*.safetensors"):
        name = path.name.replace("model.safetensors", f"model{variant}.bin")
        torch.save(load_file(path), path.with_name(name if name[0] == "d" else f"pytorch_{name}"))
        path.unlink()
    return folder


def weights(folder: Path) -> dict[str, State]:
    return {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}


def test_published_pickles(converted: Path, tmp_path: Path) -> None:
    source = pickled(tmp_path / "karlo", converted)
    (source / "README.md").write_text("Karlo")
    (source / "training.ckpt").write_bytes(b"?")
    out = convert(source, tmp_path / "out")
    check_published(out, read_index(out))
    assert weights(out).keys() == weights(converted).keys()
    assert_close(weights(out), weights(converted), rtol=0, atol=0)
    kept = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert kept == {str(p.relative_to(converted)) for p in converted.rglob("*") if p.is_file()} | {
        "README.md"
    }
    assert (out / "decoder/config.json").read_text() == (source / "decoder/config.json").read_text()


def test_variants_and_shards(converted: Path, tmp_path: Path) -> None:
    source = pickled(tmp_path / "karlo", converted, ".fp16")
    folder = source / "decoder"
    whole = torch.load(folder / "diffusion_pytorch_model.fp16.bin", weights_only=True)
    (folder / "diffusion_pytorch_model.fp16.bin").unlink()
    names = [f"diffusion_pytorch_model.fp16-0000{n}-of-00002.bin" for n in (1, 2)]
    for n, name in enumerate(names):
        torch.save(dict(list(whole.items())[n::2]), folder / name)
    places = {key: names[n % 2] for n, key in enumerate(whole)}
    index = folder / "diffusion_pytorch_model.bin.index.fp16.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    out = convert(source, tmp_path / "out", dtype=torch.float16)
    decoder = UNet2DConditionModel.from_pretrained(out / "decoder", variant="fp16", use_safetensors=True)
    assert_close(decoder.conv_in.weight.half(), whole["conv_in.weight"].half())
    check_published(out, read_index(out), "fp16")
    assert not list(out.rglob("*.bin*"))


def test_shared_memory_and_parameters(converted: Path, tmp_path: Path) -> None:
    source = pickled(tmp_path / "karlo", converted)
    path = source / "text_proj" / "diffusion_pytorch_model.bin"
    base = torch.arange(12.0)
    given = {"a": base[:6].view(2, 3).T, "b": base[3:], "c": torch.nn.Parameter(base), "n": torch.arange(3)}
    torch.save(given, path)
    tensors = weights(convert(source, tmp_path / "out"))["text_proj/diffusion_pytorch_model.safetensors"]
    assert_close(tensors, {name: tensor.detach() for name, tensor in given.items()}, rtol=0, atol=0)
    torch.save({"a": torch.tensor([1e6])}, path)
    with pytest.raises(UserError, match="a has numbers too large for float16"):
        convert(source, tmp_path / "half", dtype=torch.float16)


def test_mistakes_of_folders(karlo_files: Folders, converted: Path, tmp_path: Path) -> None:
    source, clip = karlo_files
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    bare = shutil.copytree(converted, tmp_path / "bare")
    (bare / "decoder" / "diffusion_pytorch_model.safetensors").unlink()
    for arguments, options, message in (
        (("nowhere", "out"), {}, "no folder at"),
        (("empty", "out"), {}, r"no unCLIP checkpoint in .*: expected model_index.json .* prior-ckpt\*.ckpt"),
        ((source, "taken"), {"clip": clip}, "holds something that is no pipeline"),
        ((source, source / "out"), {"clip": clip}, "out overlaps .*, which is read: choose another"),
        ((source, source.parent), {"clip": clip}, "overlaps"),
        ((source, "out"), {}, "come without CLIP: give a folder"),
        (("other", "out"), {}, "holds a StableDiffusionPipeline: expected UnCLIPPipeline or"),
        ((converted, "out"), {"clip": clip}, "brings its own CLIP"),
        (("bare", "out"), {}, "decoder has no weights"),
    ):
        with pytest.raises(UserError, match=message):
            convert(*(tmp_path / each for each in arguments), **options)
    assert not (tmp_path / "out").exists()


def test_command(karlo_files: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: Path | str) -> int:
        with pytest.raises(SystemExit) as end:
            cli.main(["convert", *map(str, arguments)])
        return int(end.value.code or 0)

    out = tmp_path / "out"
    assert call(karlo_files[0], "--clip", karlo_files[1], "-o", out, "--dtype", "float16") == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert load_file(out / "text_encoder/model.safetensors")["text_projection.weight"].dtype == torch.float16
    assert call(karlo_files[0], "-o", tmp_path / "other") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: Karlo's own files come without CLIP")
