"""Components of embeddings: what is kept, and the strip that shows it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close
from typer.testing import CliRunner

from unclip.errors import UserError
from unclip.eval.cli import app
from unclip.eval.grids import CAPTION, GAP, SIDE
from unclip.eval.pca import Basis, frames

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "emoji-fixture.tar"


@pytest.fixture
def z() -> torch.Tensor:
    """Unit embeddings [200, 8] whose variance falls from axis to axis."""
    spread = torch.tensor([2.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05])
    drawn = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * spread + 0.5
    return F.normalize(drawn, dim=-1)


def test_all_components_give_the_embedding_again(z: torch.Tensor) -> None:
    basis = Basis.fit(z)
    assert_close(basis.axes @ basis.axes.T, torch.eye(8), atol=1e-5, rtol=0)
    assert_close(basis.keep(z, 8), z, atol=1e-5, rtol=0)
    assert_close(basis.keep(z, 3).norm(dim=-1), torch.ones(200))


def test_the_axes_are_those_of_numpy_in_falling_order(z: torch.Tensor) -> None:
    basis = Basis.fit(z)
    x = (z - z.mean(0)).numpy().astype(np.float64)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    assert_close(np.abs((basis.axes.double().numpy() * axes).sum(1)), np.ones(8), atol=1e-4, rtol=0)
    likeness = [(basis.keep(z, k) * z).sum(-1).mean() for k in range(1, 9)]
    assert all(a < b for a, b in pairwise(likeness))


def test_what_lies_in_the_first_components_is_kept_by_them() -> None:
    basis = Basis(torch.zeros(3), torch.eye(3)[:2])
    z = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
    assert_close(basis.keep(z, 1)[0], torch.tensor([1.0, 0.0, 0.0]))
    assert_close(basis.keep(z, 2), torch.tensor([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0]]))
    made, names = frames(basis, z, [1, 2])
    assert names == ["k = 1", "k = 2", "all"]
    assert_close(made[:, 2], z)


def test_counts() -> None:
    basis = Basis(torch.zeros(12), torch.eye(12)[:10])
    assert basis.counts() == [1, 2, 4, 8, 10]
    assert basis.counts([3, 9]) == [3, 9]
    with pytest.raises(UserError, match="between 1 and 10, which this basis has; got 11"):
        basis.counts([1, 11])
    with pytest.raises(UserError, match="at least two embeddings"):
        Basis.fit(torch.zeros(1, 4))


def test_the_command_writes_a_strip_for_each_picture(tiny_model: Path, tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 30), colour).save(tmp_path / name)
    given = ["pca", tmp_path / "a.png", tmp_path / "b.png", "--model", tiny_model, "--data", FIXTURE]
    given += ["--out", tmp_path / "strip.png", "--components", "1,12"]
    result = CliRunner().invoke(app, list(map(str, given)), catch_exceptions=False)
    assert result.stdout.strip() == str(tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as sheet:
        pixels = np.asarray(sheet)
    assert sheet.size == (4 * (SIDE + GAP) + GAP, CAPTION + GAP + 2 * (CAPTION + SIDE + GAP))
    frame = [
        pixels[CAPTION + GAP + CAPTION :][:SIDE, GAP + i * (SIDE + GAP) :][:, :SIDE].astype(int)
        for i in range(4)
    ]
    # All twelve components are the embedding itself, and x_T is the same; the first alone is another picture.
    assert np.abs(frame[2] - frame[3]).max() <= 2
    assert np.abs(frame[1] - frame[3]).max() > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--components", "1,x"],
            "--components takes whole numbers with commas between them, such as 1,4,16, got '1,x'",
        ),
        (["--data", "nowhere"], "unclip data build emoji --out nowhere"),
        ([], "this model has no AR prior, whose components are used: give pictures by --data"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tiny_model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    given = ["pca", tmp_path / "a.png", "--model", tiny_model, "--out", tmp_path / "s.png", *arguments]
    result = CliRunner().invoke(app, list(map(str, given)))
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "s.png").exists()
