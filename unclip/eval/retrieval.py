"""Retrieval: at which rank a caption, or an embedding made from one, finds a right picture among real ones.

Which pictures are right is said by labels: a query is answered by every picture of the same label. A caption
that names the style has the label (concept, style), one that does not has its concept.

Shapes: Q queries, G pictures in the gallery, D dimensions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

_CHUNK = 256  # queries at a time, so that 20,000 pictures need 20 MB


def label_numbers(*sequences: Sequence[Hashable]) -> list[np.ndarray]:
    """Number labels, equal ones in any of the sequences alike -> one int64 array for each sequence."""
    numbers: dict[Hashable, int] = {}
    return [np.array([numbers.setdefault(x, len(numbers)) for x in seq], np.int64) for seq in sequences]


def ranks(
    queries: Tensor, gallery: Tensor, query_labels: Sequence[Hashable], gallery_labels: Sequence[Hashable]
) -> np.ndarray:
    """Rank of the best right picture of each query -> int64 [Q], 1 = nearest; G + 1 where there is no right
    picture.

    A wrong picture as near as the right one counts as nearer: an encoder that sees no difference gets no
    credit.

    Args:
        queries: [Q,D], gallery: [G,D]; compared by dot product, so both of unit norm for cosine similarity.
        query_labels: Q labels, gallery_labels: G labels.
    """
    asked, shown = (torch.from_numpy(x) for x in label_numbers(query_labels, gallery_labels))
    found = []
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        similarity = queries[part].float() @ gallery.T.float()
        right = asked[part, None] == shown[None]
        best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        nearer = ((similarity >= best) & ~right).sum(1)
        found.append(torch.where(right.any(1), nearer + 1, len(gallery) + 1))
    return torch.cat(found).numpy() if found else np.zeros(0, np.int64)


def chance(query_labels: Sequence[Hashable], gallery_labels: Sequence[Hashable], k: int = 1) -> float:
    """Expected share of queries answered within the first k by a random order of the gallery."""
    counts: dict[Hashable, int] = {}
    for label in gallery_labels:
        counts[label] = counts.get(label, 0) + 1
    total = len(gallery_labels)
    missed = []
    for label in query_labels:
        wrong = total - counts.get(label, 0)
        # No right picture among k drawn without replacement.
        missed.append(np.prod([max(0, wrong - i) / (total - i) for i in range(min(k, total))]))
    return float(1 - np.mean(missed))


def neighbours(queries: Tensor, gallery: Tensor, k: int, forbidden: Tensor | None = None) -> np.ndarray:
    """Positions of the k nearest pictures of each query, nearest first -> int64 [Q, min(k, G)].

    Args:
        queries: [Q,D], gallery: [G,D]; compared by dot product.
        forbidden: bool [Q,G], True where a picture may not be found; at least k must remain.
    """
    similarity = queries.float() @ gallery.T.float()
    if forbidden is not None:
        similarity = similarity.masked_fill(forbidden, -torch.inf)
    return similarity.topk(min(k, len(gallery)), dim=1).indices.numpy()
