"""`unclip vary`, `blend`, `diff`, `edit`, `upscale`, `invert` and `describe`: what is done with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from unclip.cli.delivery import Wanted, source_facts
from unclip.cli.options import (
    AsJson,
    Device,
    FitOption,
    GuidanceScale,
    Model,
    Number,
    Prior,
    Text,
    Whole,
    load_pipeline,
    model_name,
    read_numbers,
    tell_understood,
)
from unclip.cli.shared import Change, Decoding, Machine, with_groups
from unclip.errors import UserError

LATENT = ".safetensors"  # how the names of files of `unclip invert` end

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files of any size and kind.")]
OneImage = Annotated[str, typer.Argument(metavar="IMAGE", help="A picture file of any size and kind.")]
GridOption = Annotated[bool, typer.Option("--grid", help="Write a grid of the results of each picture, too.")]
GifOption = Annotated[bool, typer.Option("--gif", help="Write the frames as a GIF, there and back, too.")]
NoiseOption = Annotated[
    str,
    typer.Option(
        help="inverted: from the picture's own x_T, found by DDIM inversion. fresh: from a new one."
    ),
]


@with_groups
def vary(
    images: Images,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="For each picture.")] = 4,
    eta: Annotated[float, typer.Option(help="0 to 1: 0 is the picture again, 1 leaves least of x_T.")] = 0.7,
    noise: NoiseOption = "inverted",
    prompt: Annotated[
        Text, typer.Option(help="A caption for the decoder, which heeds the picture more.")
    ] = None,
    grid: GridOption = False,
    *,
    wanted: Wanted,
    decoding: Decoding,
    machine: Machine,
) -> None:
    """Make variations of pictures: what CLIP sees in them stays. A latent of `unclip invert` will do, too."""
    from unclip.pipelines.stages import generators

    check_pictures(images, latents=True)
    options = {"eta": eta, "noise": noise, "prompt": prompt, **decoding.options()}
    delivery = wanted.delivery(operation="vary", **options, model=model_name(machine.model))
    pipe = machine.pipeline("UnCLIPVariationPipeline")
    tell_understood(pipe, [prompt or ""], decoding.plain_words)
    first = wanted.first_seed()
    for image in images:
        source = read_latents(image)
        count = 1 if source is image else len(source)
        seeds = [first + k for k in range(num_images)] * count
        made = pipe(
            source,
            num_images_per_prompt=num_images,
            size=wanted.size,
            generator=generators(seeds),
            **options,
        )
        delivery.add(
            made.images,
            f"{Path(image).stem} vary",
            seeds,
            source_facts(image),
            numbers=None if count == 1 else [k for k in range(count) for _ in range(num_images)],
            captions=[f"seed {seed}" for seed in seeds],
            sheet=grid,
            columns=num_images,
        )
    delivery.end()


@with_groups
def blend(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGE|prompt:TEXT...", help="Two or more pictures and prompts.")
    ],
    weights: Annotated[Text, typer.Option(help="Of each input, e.g. 1,1,2: one picture of all.")] = None,
    frames: Annotated[Whole, typer.Option(help="Pictures on the way through all; by default 9.")] = None,
    noise: Annotated[str, typer.Option(help="x_T: slerp between the inputs', fixed, or fresh.")] = "slerp",
    gif: GifOption = False,
    prior: Prior = None,
    *,
    wanted: Wanted,
    decoding: Decoding,
    machine: Machine,
) -> None:
    """Blend pictures and prompts: frames on the way from one to the next as a strip, or one weighted mean."""
    from unclip.pipelines.interpolation import PROMPT, check_weights
    from unclip.pipelines.stages import generators

    prompts = [each.removeprefix(PROMPT) for each in inputs if each.startswith(PROMPT)]
    check_pictures([each for each in inputs if not each.startswith(PROMPT)])
    shares = None if weights is None else read_numbers(weights, "--weights")
    count = 9 if frames is None and shares is None else frames
    check_weights(shares, count, len(inputs))
    options = {"weights": shares, "num_frames": count, "noise": noise, "prior": prior, **decoding.options()}
    delivery = wanted.delivery(operation="blend", **options, model=model_name(machine.model))
    pipe = machine.pipeline("UnCLIPInterpolationPipeline")
    tell_understood(pipe, prompts, decoding.plain_words)
    seed = wanted.first_seed()
    images = pipe(inputs, size=wanted.size, generator=generators([seed])[0], **options).images
    many = len(images) > 1
    delivery.add(
        images,
        " ".join([*(Path(each.removeprefix(PROMPT)).stem for each in inputs), "blend"]),
        [seed] * len(images),
        {"inputs": [each if each.startswith(PROMPT) else source_facts(each) for each in inputs]},
        numbers=range(len(images)) if many else None,
        captions=[f"{k + 1}/{len(images)}" for k in range(len(images))],
        sheet=many,
        columns=len(images),
        film=gif,
    )
    delivery.end()


@with_groups
def diff(
    images: Images,
    gif: GifOption = False,
    prior: Prior = None,
    *,
    change: Change,
    wanted: Wanted,
    decoding: Decoding,
    machine: Machine,
) -> None:
    """Change pictures: --from "an apple, flat" --to "an apple, 3D" their manner, --to "a crying face" what they are."""
    from unclip.pipelines.stages import generators

    check_pictures(images)
    way = change.way()
    options = {**change.options(way), "prior": prior, **decoding.options()}
    delivery = wanted.delivery(operation="diff", **options, model=model_name(machine.model))
    pipe = machine.pipeline("UnCLIPTextDiffPipeline")
    tell_understood(pipe, [*way.sources, *way.targets], decoding.plain_words)
    seed, frames = wanted.first_seed(), len(way.thetas)
    for image in images:
        made = pipe(image, size=wanted.size, generator=generators([seed])[0], **options)
        delivery.add(
            made.images,
            f"{Path(image).stem} diff {way.targets[0]}",
            [seed] * frames,
            source_facts(image),
            numbers=range(frames) if frames > 1 else None,
            captions=[f"theta {each:.2f}" for each in way.thetas],
            sheet=frames > 1,
            columns=frames,
            film=gif,
        )
    delivery.end()


@with_groups
def edit(
    image: OneImage,
    prompt: Annotated[str, typer.Argument(help="What the whole picture is to show.")],
    mask: Annotated[
        Text, typer.Option(help="Picture of the same size, white where IMAGE is to be made anew.")
    ] = None,
    outpaint: Annotated[
        float, typer.Option(help="0 to 1: make IMAGE smaller by this share and go on around it.")
    ] = 0.0,
    strength: Annotated[
        Number, typer.Option(help="Change all of IMAGE instead, 0 to 1: how little of it stays.")
    ] = None,
    image_weight: Annotated[float, typer.Option(help="0 to 1: how much CLIP's view of IMAGE counts.")] = 0.0,
    resamplings: Annotated[
        Whole, typer.Option(min=1, help="More: the filling fits its surroundings better; by default 4.")
    ] = None,
    negative_prompt: Annotated[Text, typer.Option(help="What to move away from.")] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Results to make.")] = 1,
    grid: GridOption = False,
    prior: Prior = None,
    *,
    wanted: Wanted,
    decoding: Decoding,
    machine: Machine,
) -> None:
    """Fill the part of a picture that a mask (or its transparency) marks, or change all of it with --strength."""
    from unclip.pipelines.reading import read_mask, read_picture
    from unclip.pipelines.stages import generators

    if strength is not None and (mask is not None or outpaint):
        raise UserError(
            "--strength changes the whole picture: leave out --mask and --outpaint, or leave it out"
        )
    if strength is not None and resamplings is not None:
        raise UserError("--resamplings is of filling a hole: leave it out with --strength")
    picture = read_picture(image)
    if mask is not None:
        read_mask(mask, like=picture.size)
    own: dict[str, Any] = {"strength": strength}
    if strength is None:
        own = {"outpaint": outpaint} | ({} if resamplings is None else {"num_resamplings": resamplings})
    own |= {"image_weight": image_weight, "negative_prompt": negative_prompt, "prior": prior}
    own |= decoding.options()
    named = {} if mask is None else {"mask": source_facts(mask)}
    delivery = wanted.delivery(
        operation="edit", prompt=prompt, **own, **named, model=model_name(machine.model)
    )
    pipe = machine.pipeline("UnCLIPInpaintPipeline" if strength is None else "UnCLIPImg2ImgPipeline")
    tell_understood(pipe, [prompt, negative_prompt or ""], decoding.plain_words)
    first = wanted.first_seed()
    seeds = [first + k for k in range(num_images)]
    own |= {"mask_image": mask} if strength is None else {}
    made = pipe(
        prompt, image, num_images_per_prompt=num_images, size=wanted.size, generator=generators(seeds), **own
    )
    delivery.add(made.images, f"{Path(image).stem} edit {prompt}", seeds, source_facts(image), sheet=grid)
    delivery.end()


@with_groups
def upscale(images: Images, *, wanted: Wanted, machine: Machine) -> None:
    """Give pictures of any shape a longer side of --size 256 or 1024 pixels (by default the largest)."""
    from unclip.pipelines.stages import generators

    check_pictures(images)
    delivery = wanted.delivery(operation="upscale", model=model_name(machine.model))
    pipe = machine.pipeline("UnCLIPUpscalePipeline")
    seed = wanted.first_seed()
    for image in images:
        made = pipe(image, size=wanted.size, generator=generators([seed])[0])
        delivery.add(made.images, f"{Path(image).stem} upscale", [seed], source_facts(image))
    delivery.end()


@with_groups
def invert(
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .safetensors.")] = Path(
        "latent.safetensors"
    ),
    steps: Annotated[Whole, typer.Option(help="Steps of the decoder; by default 25.")] = None,
    corrections: Annotated[
        int, typer.Option(min=1, help="Of x_T at each step: more, a closer round trip.")
    ] = 2,
    guidance_scale: GuidanceScale = None,
    fit: FitOption = "pad",
    as_json: AsJson = False,
    *,
    machine: Machine,
) -> None:
    """Write the bipartite latent (z_i, x_T) of pictures, which `vary` and `generate --image-embeds` take."""
    from unclip.files import check_writable

    if output.suffix != LATENT:
        raise UserError(f"--output must be a file that ends with {LATENT}, got {output}")
    check_pictures(images)
    check_writable(output.absolute().parent)
    found = machine.pipeline("UnCLIPVariationPipeline").latents(
        images,
        num_corrections=corrections,
        fit=fit,
        decoder_num_inference_steps=steps,
        decoder_guidance_scale=guidance_scale,
    )
    found.save(output)
    facts = {
        "path": str(output),
        "image_embeds": list(found.image_embeds.shape),
        "noise": list(found.noise.shape),
    }
    typer.echo(json.dumps({**facts, **found.options()}) if as_json else str(output))


def describe(
    images: Images,
    top: Annotated[int, typer.Option(min=1, help="Captions and words to show.")] = 5,
    captions: Annotated[
        Path | None, typer.Option(help="A file of own captions to choose from, one a line.")
    ] = None,
    as_json: AsJson = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """Say what CLIP sees in pictures: the nearest captions and words, with their cosines."""
    from unclip.pipelines.describe import Candidates
    from unclip.pipelines.describe import describe as look
    from unclip.pipelines.manipulation import CLIP_SEES_AT
    from unclip.pipelines.reading import read_pictures

    own = Candidates.read(captions) if captions else None
    seen = read_pictures(images, CLIP_SEES_AT).rgb
    pipe = load_pipeline(model, device, "float32", False)
    if own is None and pipe.lexicon is None:
        raise UserError("this model has no lexicon to take captions from: give --captions FILE")
    candidates = own or Candidates.of_lexicon(pipe.lexicon)  # type: ignore[arg-type]
    found = look(pipe.clip, pipe.clip.encode_image(seen.to(pipe.device)), candidates, top)
    if as_json:
        described = [{"image": image, **vars(each)} for image, each in zip(images, found, strict=True)]
        typer.echo(json.dumps({"images": described}))
        return
    for image, each in zip(images, found, strict=True):
        typer.echo(image)
        for caption, score in each.captions:
            typer.echo(f"  {score:.3f}  {caption}")
        typer.echo("  words  " + ", ".join(f"{word} {score:.2f}" for word, score in each.words))


def check_pictures(images: list[str], latents: bool = False) -> None:
    """Read them all once, before anything slow: one that is missing or damaged costs no work on the others."""
    from unclip.pipelines.reading import read_picture

    for image in images:
        if not latents or read_latents(image) is image:
            read_picture(image)


def read_latents(image: str) -> Any:
    """A picture's path as it is, or what a latent's file holds."""
    if not image.endswith(LATENT):
        return image
    from unclip.pipelines import Latents

    return Latents.load(image)
