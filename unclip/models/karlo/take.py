"""Taking over networks of diffusers: their configuration, and their tensors without a copy; they stay as they are."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def own_config(network: Any) -> dict[str, Any]:
    """The arguments that a network of diffusers was made with, without what diffusers notes beside them."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def with_tensors_of(source: nn.Module, kind: type[Network], **config: Any) -> Network:
    """A network of `kind` on the tensors of another one that has the same names."""
    with torch.device("meta"):
        network = kind(**config)
    network.load_state_dict(source.state_dict(), assign=True)
    return network.train(source.training)
