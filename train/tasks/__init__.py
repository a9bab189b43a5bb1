"""The stages of training and their tasks; each is imported only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unclip.errors import UserError

if TYPE_CHECKING:
    from .base import Task

STAGES = (
    "clip",
    "prior",
    "prior-recall",
    "prior-ar",
    "prior-regression",
    "decoder",
    "upsampler-256",
    "upsampler-1024",
)


def task_class(stage: str) -> type[Task]:
    """The task of a stage.

    Raises:
        UserError: no such stage.
    """
    if stage == "clip":
        from .clip import ClipTask

        return ClipTask
    if stage == "prior":
        from .prior import PriorTask

        return PriorTask
    if stage == "prior-recall":
        from .recall import RecallPriorTask

        return RecallPriorTask
    if stage == "prior-ar":
        from .prior_ar import AutoregressivePriorTask

        return AutoregressivePriorTask
    if stage == "prior-regression":
        from .prior_regression import RegressionPriorTask

        return RegressionPriorTask
    if stage == "decoder":
        from .decoder import DecoderTask

        return DecoderTask
    if stage == "upsampler-256":
        from .upsampler import Upsampler256Task

        return Upsampler256Task
    if stage == "upsampler-1024":
        from .upsampler import Upsampler1024Task

        return Upsampler1024Task
    raise UserError(f"unknown stage {stage!r}: expected one of {', '.join(STAGES)}")
