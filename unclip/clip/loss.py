"""The contrastive loss: open_clip's, without its false negatives, over one process or many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor


def contrastive_loss() -> MaskedClipLoss:
    """Make the loss for the current process group (features are gathered over all ranks, with gradients)."""
    ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not ranks:
        return MaskedClipLoss()
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return MaskedClipLoss(gather_with_grad=True, rank=rank, world_size=size)


class MaskedClipLoss(ClipLoss):
    """open_clip's loss without its false negatives."""

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, true: Tensor
    ) -> Tensor:
        """Loss of N pairs; true [N,N] bool (row = caption) marks pairs that must not be pushed apart."""
        per_image, per_text = self.get_logits(image_features, text_features, logit_scale)
        labels = self.get_ground_truth(per_image.device, len(per_image))
        others = true & ~torch.eye(len(true), dtype=torch.bool, device=true.device)
        per_image = per_image.masked_fill(others.T, -torch.inf)
        per_text = per_text.masked_fill(others, -torch.inf)
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


def gather(labels: Tensor) -> Tensor:
    """Concatenate a rank's labels [n] over all ranks, in open_clip's order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return labels
    parts = [torch.empty_like(labels) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, labels)
    return torch.cat(parts)
