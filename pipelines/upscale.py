"""Any picture enlarged by the upsamplers alone (unCLIP §2.1): they are convolutional, so it need not be square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from unclip.errors import UserError

from .calls import CallOptions, UnCLIPPipelineOutput, seeds_of
from .manipulation import Manipulation
from .pictures import to_output
from .reading import Picture, Source, read_picture, resized, source_list


class UnCLIPUpscalePipeline(Manipulation):
    """Pictures to larger ones, each of its own shape.

    A call takes:
        image: a picture or several: paths, PIL pictures, arrays, tensors; any size, mode and orientation. It is first
            resized to what an upsampler takes: the largest of 64 and 256 px (of the longer side) that it has, else 64.
            What is transparent is laid on white.
        size: of the longer side of the result, one of those above 64 in `pipe.sizes`; by default the largest.
        generator: one, or one for each picture.
        output_type, and the other options of the upsamplers, as of every pipeline (`CallOptions`).

    Gives an UnCLIPPipelineOutput without embeddings. Its pictures may differ in shape for "pil"; else they must not.
    """

    @torch.no_grad()
    def __call__(self, image: Source | Sequence[Source], **options: Unpack[CallOptions]) -> Any:
        """Enlarge pictures; the arguments are explained at the class. Returns an UnCLIPPipelineOutput.

        Raises:
            UserError: an argument is wrong; said before any network runs.
        """
        sides = list(self.sizes)
        if len(sides) == 1:
            raise UserError("this model has no upsamplers: assemble it with --upsampler-256")
        asked = any(options.get(side) is not None for side in ("size", "height", "width"))
        call = self.check(options, **({} if asked else {"size": sides[-1]}))
        if call.size == sides[0]:
            raise UserError(
                f"size {call.size} is what the decoder makes: choose of {', '.join(map(str, sides[1:]))}"
            )
        pictures = [read_picture(each) for each in source_list(image)]
        seeds = seeds_of(call, len(pictures), 1)
        shapes = {_as_large(picture, call.size) for picture in pictures}
        if call.output_type != "pil" and len(shapes) > 1:
            raise UserError(
                f"pictures of several shapes make no {call.output_type}: ask for output_type 'pil'"
            )
        enlarged = []
        for picture, seed in zip(pictures, seeds, strict=True):
            start, x = self._start_from(picture, sides[: sides.index(call.size)])
            for side in sides[sides.index(start) + 1 : sides.index(call.size) + 1]:
                x = self.upsample(self.sizes[side], side, x, [seed], call)
            enlarged.append(x)
        self.maybe_free_model_hooks()
        made: Any = (
            [to_output(each, "pil")[0] for each in enlarged]
            if call.output_type == "pil"
            else to_output(torch.cat(enlarged), call.output_type)
        )
        return UnCLIPPipelineOutput(images=made, image_embeds=None) if call.return_dict else (made, None)

    def _start_from(self, picture: Picture, sides: list[int]) -> tuple[int, torch.Tensor]:
        """The picture [1, 3, h, w] as large as one of `sides`, the largest that it reaches, and that one."""
        start = max((side for side in sides if side <= max(picture.size)), default=sides[0])
        small = resized(picture.rgb[None], *_as_large(picture, start), "bicubic")
        return start, small.clamp(-1, 1).to(self.device)


def _as_large(picture: Picture, side: int) -> tuple[int, int]:
    """(H, W) of the picture with a longer side of `side` pixels."""
    height, width = (max(1, round(side * length / max(picture.size))) for length in picture.size)
    return height, width
