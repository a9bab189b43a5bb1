"""Groups of options that commands share: declared once as a dataclass, taken by a command as one object."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from unclip.cli.options import (
    Device,
    Dtype,
    FitOption,
    GuidanceScale,
    Model,
    Number,
    PlainWords,
    Progress,
    Text,
    Whole,
    load_pipeline,
)


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
class Machine:
    """The model, and where and how it runs."""

    model: Model = None
    device: Device = None
    dtype: Dtype = "float32"
    progress: Progress = True

    def pipeline(self, kind: str) -> Any:
        """The pipeline class of a name, of the model asked for."""
        import unclip.pipelines as pipelines

        base = load_pipeline(self.model, self.device, self.dtype, self.progress)
        return getattr(pipelines, kind).from_pipe(base)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What the manipulations that decode an embedding take."""

    steps: Annotated[Whole, typer.Option(help="Steps of the decoder.")] = None
    guidance_scale: GuidanceScale = None
    noise_level: Annotated[
        Number, typer.Option(help="0 to 1, noise on the image embedding: more variety.")
    ] = None
    fit: FitOption = "pad"
    plain_words: PlainWords = None

    def options(self) -> dict[str, Any]:
        """Of a pipeline's call, those alone that are given, and `fit`."""
        given = {
            "fit": self.fit,
            "plain_words": self.plain_words,
            "decoder_num_inference_steps": self.steps,
            "decoder_guidance_scale": self.guidance_scale,
            "noise_level": self.noise_level,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a text diff is to change, and how far."""

    target: Annotated[
        list[str], typer.Option("--to", help="What it is to become; as many as --from, without it one.")
    ]
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help='What the picture shows, or "": it changes by what --to has and this has not; repeat for several. '
            "Without it the picture is redrawn as --to says.",
        ),
    ] = None
    theta: Annotated[
        Number,
        typer.Option(help="0 to 0.5, how far the last frame goes; by default 0.3, without --from 0.5."),
    ] = None
    frames: Annotated[int, typer.Option(min=1, help="Pictures from 0 to theta; 1: the last alone.")] = 7
    via: Annotated[
        Text,
        typer.Option(
            help="Take the difference of what the prior makes of the texts (prior, the default) or theirs (text)."
        ),
    ] = None
    strength: Annotated[
        Number,
        typer.Option(help="Without --from: 0 to 1, how little of the embedding stays; by default 0.7."),
    ] = None
    noise: Annotated[
        Text,
        typer.Option(
            help="x_T: inverted (the picture's own), slerp (from there to a drawn one) or fresh; by default inverted, "
            "without --from slerp."
        ),
    ] = None

    def way(self) -> Any:
        """As the pipeline sees it, checked."""
        from unclip.pipelines.text_diff import Way

        return Way.check(
            self.source or None,
            self.target,
            self.via,  # type: ignore[arg-type]
            self.noise,  # type: ignore[arg-type]
            self.theta,
            self.frames,
            self.strength,
        )

    def options(self, way: Any) -> dict[str, Any]:
        """Of the pipeline's call."""
        return {
            "source_prompt": self.source or None,
            "target_prompt": self.target,
            "theta": way.thetas,
            "via": way.via,
            "strength": way.strength if way.via == "redraw" else None,
            "noise": way.noise,
        }


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
