"""Text-to-image retrieval: which pictures a caption finds, and which of them count as right.

Shapes: M captions, N pictures, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files

from torch import Tensor


def top_k_accuracy(
    text: Tensor, image: Tensor, relevant: Tensor, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Share of captions with a right picture among their k nearest.

    Args:
        text: unit-norm caption embeddings [M,D].
        image: unit-norm picture embeddings [N,D].
        relevant: bool [M,N], True where the picture is a right answer.

    Returns:
        {"top1": share in 0..1, "top5": ...}; k is capped at N.
    """
    order = (text @ image.T).topk(min(max(ks), len(image)), dim=1).indices
    hits = relevant.gather(1, order)
    return {f"top{k}": hits[:, :k].any(1).float().mean().item() for k in ks}


def same_meaning(caption: Tensor, concept: Tensor, style: Tensor, names_style: Tensor) -> Tensor:
    """Tell which of N captions are true of which of their N pictures -> bool [N,N] (row = caption).

    A caption is true of a picture when they show the same concept and the caption names no style, or the picture's
    own; and two equal captions are true of each other's pictures.

    Args:
        caption: int [N], equal numbers for equal texts.
        concept, style: int [N] of the picture that the caption was written for.
        names_style: bool [N]: the caption says which style.
    """
    same_text = caption[:, None] == caption[None]
    same_concept = concept[:, None] == concept[None]
    same_style = style[:, None] == style[None]
    return same_text | (same_concept & (same_style | ~names_style[:, None]))


def paraphrases() -> list[dict[str, str]]:
    """Hand-written paraphrases, {"text": natural words, "subject": the subject's standard name}; none is a caption."""
    return json.loads((files("unclip.clip") / "paraphrases.json").read_text(encoding="utf-8"))
