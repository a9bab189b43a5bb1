"""Plain words for a pipeline: its lexicon, a file in the model's folder, rewrites prompts before CLIP reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from unclip.data.words import LEXICON_FILE, Lexicon, Understood
from unclip.errors import UserError

from .loading import find_lexicon


class PlainWords(DiffusionPipeline):
    """What a pipeline needs to understand plain words; the lexicon is read when it is first asked for."""

    _lexicon: Lexicon | None = None
    _lexicon_file: Path | None = None
    _looked = False  # for the lexicon's file

    @property
    def lexicon(self) -> Lexicon | None:
        """Of this model; None if it has none. May be set.

        Raises:
            UserError: its file is damaged.
        """
        if not self._looked:
            path = self._lexicon_file
            if path is None and (source := getattr(self.config, "_name_or_path", None)):
                path = find_lexicon(source)  # loaded by diffusers' own loader
            self._lexicon, self._looked = None if path is None else Lexicon.load(path), True
        return self._lexicon

    @lexicon.setter
    def lexicon(self, lexicon: Lexicon | None) -> None:
        self._lexicon, self._looked = lexicon, True

    def understand(self, prompts: Sequence[str]) -> list[Understood]:
        """Each prompt in the captions' words; as it is without a lexicon."""
        lexicon = self.lexicon
        if lexicon is None:
            return [Understood(prompt, prompt) for prompt in prompts]
        return [lexicon.understand(prompt) for prompt in prompts]

    def in_plain_words(self, prompts: list[str], wanted: bool | None) -> list[str]:
        """The texts for CLIP; `wanted` None stands for the model's setting."""
        if wanted is not None and not isinstance(wanted, bool):
            raise UserError(f"plain_words must be True, False or None, got {wanted!r}")
        config: Any = self.config
        if not (config.plain_words if wanted is None else wanted):
            return prompts
        return [each.text for each in self.understand(prompts)]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save all components, and the lexicon if there is one."""
        lexicon = self.lexicon
        super().save_pretrained(save_directory, *args, **kwargs)
        if lexicon is not None:
            lexicon.save(Path(save_directory) / LEXICON_FILE)
