"""Networks that are in memory only while their stage works: the whole pipeline takes no more than its largest one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import unclip.clip
import unclip.models
from unclip.errors import UserError
from unclip.models.saved import loading

from .loading import components
from .networks import outline, read_network

Loader = Callable[[], Any]
Load = Callable[[Any, Path], Any]  # (class, folder) -> network


def is_outline(network: Any) -> bool:
    """Whether a network has no numbers."""
    return isinstance(network, nn.Module) and any(each.is_meta for each in network.parameters())


class Stored:
    """Components by name: what gives one without its numbers, and what reads it.

    Args:
        outlines, readers: of each component.
    """

    def __init__(self, outlines: dict[str, Loader], readers: dict[str, Loader]) -> None:
        self._outlines, self._readers = outlines, readers
        self.device = torch.device("cpu")
        self._dtype: torch.dtype | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def outlines(self) -> dict[str, Any]:
        """The components without their numbers."""
        return {name: make() for name, make in self._outlines.items()}

    def move(self, *args: Any, **kwargs: Any) -> None:
        """Where, and in which precision, the components work from now on: the arguments of `Module.to`."""
        for each in (*args, *kwargs.values()):
            if isinstance(each, torch.dtype):
                self._dtype = each
            elif isinstance(each, (str, torch.device, int)) and not isinstance(each, bool):
                self.device = torch.device(each)

    @contextmanager
    def reading(self, name: str, network: nn.Module) -> Iterator[None]:
        """The outline of a component becomes the component, and an outline again."""
        kept = dict(network.__dict__)
        network.__dict__.update(self._readers[name]().to(self.device, self._dtype).__dict__)
        try:
            yield
        finally:
            network.__dict__.clear()
            network.__dict__.update(kept)


def in_memory(
    makers_of: Callable[[Load], Mapping[str, Loader]],
    *,
    low_memory: bool,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, Any], Stored | None]:
    """The components of a published checkpoint; with `low_memory` without their numbers, and what reads these.

    Args:
        makers_of: what loads a network of its class and folder -> component -> what makes it.
    """
    readers = dict(makers_of(partial(read_network, variant=variant, dtype=dtype)))
    if not low_memory:
        return {name: make() for name, make in readers.items()}, None
    stored = Stored(dict(makers_of(outline)), readers)
    return stored.outlines(), stored


def of_model_folder(
    source: str | Path,
    without: Collection[str] = (),
    *,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    **other: Any,
) -> Stored:
    """The networks of a checked folder of one of this package's models, but those that the caller brings.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(source).resolve()  # wherever the program goes before it is read
    if not folder.is_dir():
        raise UserError(f"low_memory reads from a folder, got {source}: download the repository first")
    kinds = {
        name: _kind(kind)
        for name, kind in components(folder).items()
        if "Scheduler" not in kind and name not in without
    }
    return Stored(
        {name: partial(outline, kind, folder / name) for name, kind in kinds.items()},
        {
            name: partial(_read, kind, folder / name, variant, dtype or torch_dtype)
            for name, kind in kinds.items()
        },
    )


def _kind(name: str) -> Any:
    """A class of network by its name."""
    return getattr(unclip.models, name, None) or getattr(unclip.clip, name)


def _read(kind: Any, folder: Path, variant: str | None, dtype: torch.dtype | None) -> Any:
    with loading(f"{kind.__name__} in {folder}"):
        return kind.from_pretrained(folder, variant=variant, torch_dtype=dtype or torch.float32).eval()
