"""Groups of options that commands share: declared once as a dataclass, taken by a command as one object."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unclip.cli.options import (
    AsJson,
    Device,
    Dtype,
    GuidanceScale,
    Model,
    Number,
    Output,
    Prior,
    Progress,
    Whole,
    load_pipeline,
    model_name,
)

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings of every stage, as `unclip generate` takes them."""

    steps: Annotated[Whole, typer.Option(help="Steps of the decoder.")] = None
    prior_steps: Annotated[Whole, typer.Option(help="Steps of the prior.")] = None
    upsampler_steps: Annotated[Whole, typer.Option(help="Steps of each upsampler.")] = None
    decoder_guidance_scale: GuidanceScale = None
    prior_guidance_scale: GuidanceScale = None
    candidates: Annotated[Whole, typer.Option(help="Embeddings that the prior chooses from.")] = None
    temperature: Annotated[Number, typer.Option(help="Of an autoregressive prior; 1 = as learned.")] = None
    top_p: Annotated[Number, typer.Option(help="Of an autoregressive prior: likeliest codes alone.")] = None
    noise_level: Annotated[Number, typer.Option(help="0 to 1: more variety, less likeness.")] = None
    upsampler_noise_level: Annotated[Number, typer.Option(help="0 to 1: more repair.")] = None

    def settings(self, pipe: Any) -> Any:
        """Of a call of the pipeline, whose own stand in for what is not given."""
        return pipe.settings(
            decoder_num_inference_steps=self.steps,
            prior_num_inference_steps=self.prior_steps,
            upsampler_num_inference_steps=self.upsampler_steps,
            decoder_guidance_scale=self.decoder_guidance_scale,
            prior_guidance_scale=self.prior_guidance_scale,
            num_prior_candidates=self.candidates,
            prior_temperature=self.temperature,
            prior_top_p=self.top_p,
            noise_level=self.noise_level,
            upsampler_noise_level=self.upsampler_noise_level,
        )


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every manipulation of pictures takes."""

    seed: Annotated[
        Whole,
        typer.Option(min=0, max=2**62, help="Of the first picture, the next has seed + 1; else random."),
    ] = None
    size: Annotated[Whole, typer.Option(help="Side in pixels: 64, 256 or 1024.")] = None
    output: Output = Path("out")
    steps: Annotated[Whole, typer.Option(help="Steps of the decoder.")] = None
    guidance_scale: GuidanceScale = None
    noise_level: Annotated[
        Number, typer.Option(help="0 to 1, noise on the image embedding: more variety.")
    ] = None
    fit: Annotated[
        str, typer.Option(help="How a picture is made square: pad (on white), crop or stretch.")
    ] = "pad"
    prior: Prior = None
    grid: Annotated[bool, typer.Option("--grid", help="Write a captioned grid of all, too.")] = False
    as_json: AsJson = False
    model: Model = None
    device: Device = None
    dtype: Dtype = "float32"
    progress: Progress = True

    def pipeline(self, kind: str) -> Any:
        """The pipeline class of a name, of the model asked for."""
        import unclip.pipelines as pipelines

        base = load_pipeline(self.model, self.device, self.dtype, self.progress)
        return getattr(pipelines, kind).from_pipe(base)

    def options(self) -> dict[str, Any]:
        """What of a call it settles; without a generator."""
        return {
            "size": self.size,
            "decoder_num_inference_steps": self.steps,
            "decoder_guidance_scale": self.guidance_scale,
            "noise_level": self.noise_level,
            "prior": self.prior,
        }

    def first_seed(self) -> int:
        """The seed of the first picture."""
        return int.from_bytes(os.urandom(4), "little") if self.seed is None else self.seed

    def deliver(
        self,
        images: list[Image.Image],
        names: list[str],
        seeds: list[int],
        facts: dict[str, Any],
        captions: list[str] | None = None,
        columns: int | None = None,
        sheet: bool | None = None,
    ) -> None:
        """Write pictures and, if it is wanted, a sheet of them; print where, or all of it as JSON.

        Args:
            names, captions: of each picture, in its file's name and below it on the sheet.
            facts: what the files hold besides seed, settings and model.
            sheet: whether there is one; by default if `--grid` asks for it.
        """
        import json

        from unclip.pipelines.pictures import file_for, grid, save_png

        asked = {name: value for name, value in self.options().items() if value is not None}
        common = {**facts, **asked, "model": model_name(self.model)}
        written = []
        for image, name, seed in zip(images, names, seeds, strict=True):
            of_this = {**common, "seed": seed}
            path = file_for(self.output, name, seed, of_this)
            save_png(image, path, of_this)
            written.append({"path": str(path), "seed": seed, "width": image.width, "height": image.height})
        where = None
        if self.grid if sheet is None else sheet:
            where = file_for(self.output, f"sheet {names[0]}", seeds[0], common)
            save_png(grid(images, captions or names, columns), where, common)
        if self.as_json:
            typer.echo(json.dumps({**common, "images": written, "grid": str(where) if where else None}))
            return
        for each in [*(each["path"] for each in written), *([where] if where else [])]:
            typer.echo(each)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its parameters that are dataclasses as options of their own, behind the others."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in own if is_dataclass(each.annotation)}
    members = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{field: given.pop(field) for field in members[name]})
            for name, group in groups.items()
        }
        command(**given, **made)

    together = [each for each in own if each.name not in groups]
    together += [each for name in groups for each in members[name].values()]
    together = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in together]
    run.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in together}
    del run.__wrapped__
    return run
