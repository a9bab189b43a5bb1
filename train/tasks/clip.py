"""Train our two-tower CLIP (Radford et al. 2021) with open_clip's model and contrastive loss.

Batches are built to teach: the same subject in several styles (so that style must be seen), many subjects of one
kind in one style (so that the subject must be seen), and composed scenes (so that relations must be read). A caption
may then be true of several pictures of its batch; those pairs are left out of the denominator.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from unclip.clip import FrozenCLIP
from unclip.clip.loss import contrastive_loss, gather
from unclip.clip.retrieval import paraphrases, same_meaning, top_k_accuracy
from unclip.clip.tokenize import FileTokenizer, make_word_pieces
from unclip.clip.towers import (
    EFFICIENTNET,
    MINILM_CONFIG,
    build_clip,
    freeze_lower_layers,
    layout_pixels,
    load_efficientnet,
    load_minilm,
    minilm_tokenizer,
    two_tower_architecture,
)
from unclip.data import CaptionedImages, ComposedScenes
from unclip.data.images import on_background
from unclip.errors import UserError

from ..config import Slot, TrainConfig, fill
from ..pictures import load_thumbnails
from .base import Batch, Task, padded_in_front
from .clip_batches import PictureIndex, normal_text, place
from .embedded import load_pictures

LABELS = ("caption", "concept", "style", "names_style")  # what `same_meaning` asks for
HELD_OUT = ("style", "tone", "attribute", "unseen")


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """What this stage adds to TrainConfig.

    `same_subject`, `same_kind`, `scenes` are shares of a batch; the rest is drawn by the samples' weights.
    """

    text_tower: str = "minilm"  # "minilm" | "scratch"
    image_tower: str = "efficientnet"  # "efficientnet" | "scratch"
    frozen_text_layers: int = 2
    frozen_image_stages: int = 2
    frozen_words: bool = True
    locked_image: bool = False  # the image tower stays as it starts (LiT, 2111.07991): z_i keep their places
    pretrained_rate: float = 0.3  # learning rate of pretrained weights, as a factor
    temperature_rate: float = 10.0  # of the logarithm of the logits' scale: one number, few steps
    vocab_size: int = 8192  # of a scratch text tower, which learns its word pieces from the captions
    same_subject: float = 0.4
    same_kind: float = 0.2
    scenes: float = 0.12
    scene_pool: int = 2000
    coloured_background: float = 0.2
    gallery: int = 1000  # pictures per held-out split in validation

    def __post_init__(self) -> None:
        """Reject unknown towers."""
        for key, towers in (
            ("text_tower", ("minilm", "scratch")),
            ("image_tower", ("efficientnet", "scratch")),
        ):
            if getattr(self, key) not in towers:
                raise UserError(f"task.{key}: expected {' or '.join(towers)}, got {getattr(self, key)!r}")


class Gallery(NamedTuple):
    """Pictures uint8 [N,S,S,3], M captions to search them with, and which pictures are right, bool [M,N]."""

    images: np.ndarray
    captions: list[str]
    relevant: Tensor


class ClipTask(Task):
    """Contrastive training of text and image towers; saves a FrozenCLIP folder with its embedding statistics.

    Pairs are set against their own part of the batch: `accumulation` saves memory, but gives each pair fewer rivals.
    """

    name: ClassVar[str] = "clip"
    Options = ClipOptions

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.data = load_pictures(config)
        self.architecture = self._architecture()
        self.tokenizer = FileTokenizer(self._word_pieces, self.architecture["text_cfg"]["context_length"])
        self.model = self._build_model()
        self.index = PictureIndex(self.data, config.limit)
        self._scenes: dict[int, tuple[np.ndarray, str]] = {}

    @classmethod
    def network(cls) -> Callable[..., Any]:
        return two_tower_architecture

    @classmethod
    def derived(cls) -> set[str]:
        """Nothing: the CLIP is the first of the stages."""
        return set()

    @classmethod
    def resolve(cls, config: TrainConfig) -> TrainConfig:
        """The config with every default written out.

        Raises:
            UserError: an unknown key, or towers that their pretrained weights do not fit.
        """
        config = super().resolve(config)
        model, task = config.model, config.task
        fill(model["text"] or {}, {k: Slot(type(v), v) for k, v in MINILM_CONFIG.items()}, "model.text.")
        image_model, window = model["image_model"], model["context_length"]
        if not timm.is_model(image_model):
            nearest = difflib.get_close_matches(image_model, timm.list_models(), n=1, cutoff=0.0)[0]
            raise UserError(f"timm has no model.image_model={image_model}: did you mean {nearest}?")
        if task["image_tower"] == "efficientnet" and image_model != EFFICIENTNET:
            raise UserError(
                f"the pretrained image tower is {EFFICIENTNET}, got model.image_model={image_model}: "
                "start it from scratch with task.image_tower=scratch"
            )
        if task["locked_image"] and config.initial is None:
            raise UserError("task.locked_image needs initial=DIR: without it the image tower is untrained")
        if task["text_tower"] == "minilm" and not 1 <= window <= 512:
            raise UserError(f"model.context_length: MiniLM has positions for 1 to 512 tokens, got {window}")
        return config

    def _architecture(self) -> dict[str, Any]:
        options = dict(self.resolve(self.config).model)
        if self.options.text_tower == "scratch":
            options["text"] = {**(options["text"] or {}), "vocab_size": self._word_pieces.get_vocab_size()}
        return two_tower_architecture(**options)

    @cached_property
    def _word_pieces(self) -> Any:
        if self.options.text_tower == "minilm":
            return minilm_tokenizer()
        captions = (text for record in self.data.records for text in record["captions"].values())
        return make_word_pieces(captions, self.options.vocab_size)

    def _build_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = build_clip(self.architecture)
        pretrained_text = self.options.text_tower == "minilm"
        pretrained_image = self.options.image_tower == "efficientnet"
        if pretrained_text:
            load_minilm(model.text)
        if pretrained_image:
            load_efficientnet(model.visual.trunk)
        if self.architecture["layout_dims"]:
            model.visual.fit_layout(self._layout_pixels())
        freeze_lower_layers(
            model,
            text_layers=self.options.frozen_text_layers if pretrained_text else 0,
            image_stages=self.options.frozen_image_stages if pretrained_image else 0,
            word_embeddings=self.options.frozen_words and pretrained_text,
        )
        if self.options.locked_image:
            model.visual.requires_grad_(False)
        return model

    def _layout_pixels(self) -> Tensor:
        parts = np.array_split(self._thumbnails, -(-len(self._thumbnails) // 1024))
        whites = (torch.from_numpy(on_background(part)).permute(0, 3, 1, 2) for part in parts)
        return torch.cat([layout_pixels(to_unit_range(white)) for white in whites])

    def learning_rate_scale(self, name: str) -> float:
        """Pretrained weights move more slowly than the fresh projections and the temperature."""
        pretrained = (self.options.text_tower == "minilm" and name.startswith("text.transformer.")) or (
            self.options.image_tower == "efficientnet" and name.startswith("visual.trunk.")
        )
        if name == "logit_scale":
            return self.options.temperature_rate
        return self.options.pretrained_rate if pretrained else 1.0

    # ---- batches ------------------------------------------------------------------------------------------------

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """Draw n pairs: images uint8 [n,3,S,S], token ids [n,L], and what `same_meaning` needs."""
        n_scenes = min(round(n * self.options.scenes), self.options.scene_pool)
        rows = self.index.draw(n - n_scenes, rng, self.options.same_subject, self.options.same_kind)
        captions = [self.data.caption(int(i), rng) for i in rows]
        images = place(self._thumbnails[rows], rng, self.options.coloured_background)
        scenes = [self._scene(int(i)) for i in rng.choice(self.options.scene_pool, n_scenes, replace=False)]
        if scenes:
            pixels = torch.from_numpy(np.stack([image for image, _ in scenes])).permute(0, 3, 1, 2)
            images = torch.cat([images, pixels])
            captions += [caption for _, caption in scenes]
        return {"images": images, "ids": self.tokenizer(captions).ids, **self.index.labels(rows, captions)}

    @cached_property
    def _thumbnails(self) -> np.ndarray:
        return load_thumbnails(self.data, self._size, self.config.limit)  # uint8 [N,S,S,4]

    @property
    def _size(self) -> int:
        return self.architecture["vision_cfg"]["image_size"]

    @cached_property
    def _composer(self) -> ComposedScenes:
        return ComposedScenes(self.data, self.config.seed, self.options.scene_pool, "train", size=self._size)

    def _scene(self, i: int) -> tuple[np.ndarray, str]:
        # A scene takes longer to compose than to learn from, so the pool is kept once drawn.
        if i not in self._scenes:
            scene = self._composer[i]
            self._scenes[i] = (scene.image, scene.caption)
        return self._scenes[i]

    # ---- loss ---------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Symmetric cross-entropy over the batch (Radford et al. 2021, fig. 3), true pairs off the diagonal left out.

        `batch_top1` is the share of captions whose nearest picture in this rank's batch is a right one.
        """
        if self.options.locked_image:
            self.model.get_submodule("visual").eval()  # its batch norms keep their statistics, too
        image_features, text_features, scale = model(to_unit_range(batch["images"]), batch["ids"])
        scale = scale.clamp(max=100.0)  # as in the paper
        true = same_meaning(*(gather(batch[k]) for k in LABELS))
        loss = contrastive_loss()(image_features, text_features, scale, true)
        nearest = (text_features @ image_features.T).detach().argmax(1)
        own = same_meaning(*(batch[k] for k in LABELS))
        accuracy = own.gather(1, nearest[:, None]).float().mean()
        return {"loss": loss, "batch_top1": accuracy, "scale": scale.detach()}

    # ---- validation and saving ----------------------------------------------------------------------------------

    def validate(self, model: nn.Module) -> dict[str, float | Image.Image]:
        """Text-to-image retrieval, top-1 and top-5, on each held-out split and on the hand-written paraphrases."""
        clip = self._freeze(model)
        return {
            f"{name}_{k}": share
            for name, (images, texts, relevant) in self._galleries.items()
            for k, share in top_k_accuracy(
                embed_texts(clip, texts), embed_images(clip, images), relevant
            ).items()
        }

    @cached_property
    def _galleries(self) -> dict[str, Gallery]:
        """A gallery per held-out split that the data has, and one for the paraphrases."""
        data = CaptionedImages(self.data.path, split=None)
        galleries = {}
        for split in HELD_OUT:
            rows = np.array([i for i, record in enumerate(data.records) if record["split"] == split])
            if len(rows) > 1:
                galleries[split] = self._split_gallery(data, rows)
        paraphrased = self._paraphrase_gallery(data)
        return galleries if paraphrased is None else {**galleries, "paraphrase": paraphrased}

    def _split_gallery(self, data: CaptionedImages, rows: np.ndarray) -> Gallery:
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(rows, min(len(rows), self.options.gallery), replace=False))
        captions = [data.caption(int(i), rng) for i in rows]
        relevant = same_meaning(**PictureIndex(data).labels(rows, captions))
        return Gallery(np.stack([data.rgb(int(i), self._size) for i in rows]), captions, relevant)

    def _paraphrase_gallery(self, data: CaptionedImages) -> Gallery | None:
        """One picture of every subject (at most two galleries' worth), searched with words that no caption uses."""
        first: dict[str, int] = {}
        for i, record in enumerate(data.records):
            first.setdefault(normal_text(record["subject"]), i)
        known = [{**p, "subject": normal_text(p["subject"])} for p in paraphrases()]
        known = [p for p in known if p["subject"] in first]
        if not known:
            return None
        wanted = sorted({p["subject"] for p in known})
        others = [subject for subject in first if subject not in set(wanted)]
        np.random.default_rng(0).shuffle(others)
        subjects = wanted + others[: 2 * self.options.gallery]
        relevant = torch.tensor([[p["subject"] == subject for subject in subjects] for p in known])
        images = np.stack([data.rgb(first[subject], self._size) for subject in subjects])
        return Gallery(images, [p["text"] for p in known], relevant)

    def save(self, model: nn.Module, path: Path) -> None:
        """Write a FrozenCLIP folder in half precision, with mean and deviation of the training pictures' embeddings."""
        clip = self._freeze(model)
        parts = np.array_split(self._thumbnails, -(-len(self._thumbnails) // 1024))
        clip.set_statistics(torch.cat([embed_images(clip, on_background(part)) for part in parts]))
        clip.save_pretrained(path, dtype=torch.float16)

    def load(self, path: Path) -> None:
        """Start from a FrozenCLIP folder (or the output of a run) of the same architecture and word pieces.

        Only its layout code may be shorter: then a longer one is fitted to the data, and the text tower begins with
        nothing to say of the entries that are new.
        """
        clip = FrozenCLIP.from_pretrained(path / "model" if (path / "model").is_dir() else path)
        theirs, ours = clip.config.architecture, self.architecture
        added = ours["layout_dims"] - theirs.get("layout_dims", 0)
        wanted = {**theirs, "layout_dims": ours["layout_dims"], "embed_dim": theirs["embed_dim"] + added}
        if differing := sorted(
            key for key in wanted.keys() | ours.keys() if wanted.get(key) != ours.get(key)
        ):
            key = differing[0]
            raise UserError(
                f"initial={path} has another architecture: {key} would have to be {wanted.get(key)}, got "
                f"{ours.get(key)}; set the same model.* and task.* keys (a longer layout code adds to embed_dim)"
            )
        if added < 0:
            raise UserError(
                f"initial={path} has another architecture: its layout code has {theirs['layout_dims']} entries, more "
                f"than model.layout_dims={ours['layout_dims']}; a code can only grow"
            )
        state, own = clip.model.state_dict(), self.model.state_dict()
        if added:
            state |= {
                name: self._continued(own[name], state.get(name), path) for name in own if ".layout." in name
            }
            state |= {
                name: padded_in_front(state[name], own[name].shape)
                for name in own
                if name.startswith("text.proj")
            }
        self.model.load_state_dict(state)

    def _continued(self, fitted: Tensor, loaded: Tensor | None, path: Path) -> Tensor:
        """A longer code fitted to this data, if it ends as the shorter one does.

        Principal components are settled up to their signs and, where two are about as strong, a rotation. What was
        trained on the old ones needs them as they were.

        Raises:
            UserError: the data gives other components than those that the loaded code was fitted to.
        """
        if loaded is None or loaded.ndim < 2:
            return fitted
        old, new = loaded[:-1].float(), fitted[-len(loaded) : -1]  # without the constant, which is last
        likeness = torch.nn.functional.cosine_similarity(old, new, dim=1)
        if len(old) and likeness.min() < 0.9:
            raise UserError(
                f"initial={path}: its layout code was fitted to other pictures than these (a component's cosine is "
                f"{likeness.min():.2f}); keep model.layout_dims and model.embed_dim, or train on the data it came from"
            )
        return fitted

    def _freeze(self, model: nn.Module) -> FrozenCLIP:
        return FrozenCLIP.from_module(model, self.tokenizer, self.architecture)

    def describe(self) -> dict[str, Any]:
        """Count pictures, concepts and styles."""
        return {
            "pictures": len(self.data),
            "concepts": len(self.index.concepts),
            "styles": len(self.index.styles),
        }


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 [n,3,S,S] -> float in [-1,1], channels last, which is 1.2 to 1.9 times as fast on CPUs."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def embed_texts(clip: FrozenCLIP, texts: list[str], batch_size: int = 128) -> Tensor:
    """Embed captions -> [M,D]."""
    parts = [clip.encode_text(texts[i : i + batch_size]).embeds for i in range(0, len(texts), batch_size)]
    return torch.cat(parts).cpu()


def embed_images(clip: FrozenCLIP, images: np.ndarray, batch_size: int = 128) -> Tensor:
    """Embed pictures uint8 [N,S,S,3] -> [N,D]."""
    parts = []
    for start in range(0, len(images), batch_size):
        pixels = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2)
        parts.append(clip.encode_image(to_unit_range(pixels.to(clip.device))))
    return torch.cat(parts).cpu()
