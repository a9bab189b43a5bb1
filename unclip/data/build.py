"""Build the emoji data set: list the art, render it, leave out duplicates, write shards.

Rendering is the slow part and is done in chunks that are kept under `DIR/.build`, so an interrupted build goes on
where it stopped. Which pictures repeat one another is known only when all are rendered; then the shards are written
in one go. All that decides bytes is a function of (sources, limit, seed).
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unclip.data.artworks import Artwork, list_artworks
from unclip.data.captions import caption_forms, stable_hash
from unclip.data.progress import track
from unclip.data.render import render, require_renderer
from unclip.data.shards import Sample, read_tar, to_json, write_tar
from unclip.data.sources import EMOJIBASE, EMOJILIB, SOURCES, choose_sources, default_cache
from unclip.data.splits import Pick, assign_splits, drop_duplicates, near_duplicates, orphans
from unclip.errors import UserError
from unclip.files import atomic_path

FORMAT = 1  # of the shards; a build of another format is not continued
SIZE = 256
CHUNK = 128  # artworks rendered between two points of resumption
SHARD = 2000
PER_SUBJECT = 12  # of a limited build, so that tones and colours do not fill it
SAME, ALIKE = (
    4,
    20,
)  # tolerances (0..255 per coarse value): a repetition, and a give-away of a held-out picture

# People are more than half of the pictures, most of them tone variants; flags are many and alike.
_GROUP_WEIGHTS = {"people-body": 0.28, "flags": 0.35, "symbols": 0.6}
_TONE_WEIGHT, _TWO_TONE_WEIGHT = 0.4, 0.1


@dataclass(frozen=True)
class _Rendered:
    webp: bytes
    coarse: np.ndarray


def build_emoji(
    out: str | Path,
    limit: int | None = None,
    sources: list[str] | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    processes: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Build the data set into the folder `out` and return its manifest; a finished build is returned as it is.

    Args:
        out: gets `shards/emoji-00000.tar` …, `manifest.json` and `ATTRIBUTION.md`.
        limit: artworks to choose (before duplicates are removed); still several styles of the same subjects.
        sources: styles (see `unclip.data.sources.SOURCES`); all permissive ones by default.
        seed: of the choice under `limit`, the order of the samples and the wording of the captions.
        cache: folder of fetched packages.
        processes: that render; 1 renders in this process.

    Raises:
        UserError: a wrong argument, no npm, or `out` holds a build with other arguments.
    """
    out, cache = Path(out), Path(cache) if cache is not None else default_cache()
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out for everything")
    chosen = choose_sources(sources)
    plan = {
        "format": FORMAT,
        "seed": seed,
        "limit": limit,
        "sources": [_version(source.style) for source in chosen],
    }
    finished = _find_finished(out, plan)
    if finished is not None:
        return finished

    require_renderer()
    artworks = list_artworks(chosen, cache)
    if limit is not None:
        artworks = _stratified(artworks, limit, seed)
    artworks.sort(key=lambda artwork: (stable_hash(f"{seed}|order|{artwork.key}"), artwork.key))
    with atomic_path(out / ".build" / "state.json") as temporary:
        temporary.write_text(json.dumps({"plan": plan}))
    failures = _render_chunks(artworks, out / ".build", processes, progress)
    manifest = _write_shards(artworks, failures, out, plan, seed, progress)
    shutil.rmtree(out / ".build")
    return manifest


def _find_finished(out: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished build of this plan; None if there is work to do.

    Raises:
        UserError: the folder holds a build, finished or not, of another plan.
    """
    manifest, state = out / "manifest.json", out / ".build" / "state.json"
    for path in (manifest, state):
        if not path.is_file():
            continue
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete {out} and build again") from error
        # A plan is compared as JSON has it: lists, no tuples.
        if found.get("plan") != json.loads(json.dumps(plan)):
            raise UserError(
                f"{out} holds a build with other arguments ({_short(found.get('plan'))}), asked for "
                f"({_short(plan)}); choose another --out or delete that folder"
            )
        if path == manifest:
            return found
    return None


def _short(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "unknown"
    return (
        f"seed {plan['seed']}, limit {plan['limit']}, {len(plan['sources'])} sources, format {plan['format']}"
    )


def _stratified(artworks: list[Artwork], limit: int, seed: int) -> list[Artwork]:
    """A seeded choice of about even groups that takes subjects whole (up to 12 pictures), so that styles compare."""
    subjects: dict[str, dict[str, list[Artwork]]] = defaultdict(lambda: defaultdict(list))
    for artwork in artworks:
        subjects[artwork.concept.group][artwork.concept.subject].append(artwork)

    def order(name: str) -> tuple[int, str]:
        return stable_hash(f"{seed}|limit|{name}"), name

    queues = []
    for group in sorted(subjects):
        # Subjects of many styles first: one style alone teaches nothing about styles.
        names = sorted(
            subjects[group], key=lambda name: (-min(4, _styles(subjects[group][name])), order(name))
        )
        queues.append([subjects[group][name] for name in names])
    chosen: list[Artwork] = []
    while len(chosen) < limit and any(queues):
        for queue in queues:
            if queue and len(chosen) < limit:
                found = queue.pop(0)
                found.sort(key=lambda artwork: (order(artwork.concept.concept), artwork.key))
                chosen.extend(found[: min(PER_SUBJECT, limit - len(chosen))])
    return chosen


def _styles(artworks: list[Artwork]) -> int:
    return len({artwork.source.style for artwork in artworks})


def _render_chunks(artworks: list[Artwork], folder: Path, processes: int, progress: bool) -> dict[str, str]:
    """Render what is not yet in `folder`, chunk by chunk; {key: reason} of the artworks that cannot be drawn."""
    chunks = [artworks[start : start + CHUNK] for start in range(0, len(artworks), CHUNK)]
    missing = [i for i in range(len(chunks)) if not _chunk_path(folder, i).is_file()]
    with _mapper(processes) as run:
        for i in track(missing, "render", total=len(chunks), done=len(chunks) - len(missing), show=progress):
            results = run(_render_one, [(artwork.svg, artwork.webp) for artwork in chunks[i]])
            write_tar(
                _chunk_path(folder, i), zip([artwork.key for artwork in chunks[i]], results, strict=True)
            )
    return {
        key: files["error"].decode()
        for i in range(len(chunks))
        for key, files in read_tar(_chunk_path(folder, i))
        if "error" in files
    }


def _render_one(drawing: tuple[str | None, bytes | None]) -> Sample:
    try:
        webp, coarse = render(*drawing, size=SIZE)
    except (ValueError, OSError) as error:
        return {"error": str(error).encode()}
    return {"webp": webp, "coarse": coarse.tobytes()}


@contextmanager
def _mapper(processes: int) -> Iterator[Any]:
    """An ordered `map`: of a pool, or of this process for one."""
    if processes <= 1:
        yield lambda function, items: [function(item) for item in items]
        return
    # Ctrl-C reaches every process: the workers leave it to this one, which ends them.
    with multiprocessing.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield partial(pool.map, chunksize=4)


def _chunk_path(folder: Path, index: int) -> Path:
    return folder / f"chunk-{index:05d}.tar"


def _read_chunks(folder: Path) -> Iterator[tuple[str, Sample]]:
    for path in sorted(folder.glob("chunk-*.tar")):
        yield from read_tar(path)


def _write_shards(
    artworks: list[Artwork],
    failures: dict[str, str],
    out: Path,
    plan: dict[str, Any],
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Decide splits and duplicates on all rendered pictures, then write shards, attribution and manifest."""
    drawn = [artwork for artwork in artworks if artwork.key not in failures]
    if not drawn:
        raise UserError(
            f"none of {len(artworks)} pictures can be drawn ({next(iter(failures.values()))}); choose others"
        )
    coarse = np.stack(
        [
            np.frombuffer(files["coarse"], np.uint8)
            for _, files in _read_chunks(out / ".build")
            if "coarse" in files
        ]
    )
    picks = [Pick(artwork.concept, artwork.source.family) for artwork in drawn]
    splits = assign_splits(picks)
    dropped = _leave_out(drawn, coarse, picks, splits)
    kept = {
        artwork.key: _record(artwork, split, seed)
        for i, (artwork, split) in enumerate(zip(drawn, splits, strict=True))
        if i not in dropped
    }
    svgs = {artwork.key: artwork.svg for artwork in drawn}
    samples = ((key, files) for key, files in _read_chunks(out / ".build") if key in kept)
    batch: list[tuple[str, Sample]] = []
    shards = 0
    for leftover in (out / "shards").glob(".emoji-*.tar"):  # of a build that was killed while it wrote
        leftover.unlink()
    for key, files in track(samples, "shards", total=len(kept), show=progress):
        # The checksum makes a damaged picture show as soon as it is loaded.
        record = kept[key] | {"crc32": zlib.crc32(files["webp"])}
        sample = {"json": to_json(record), "webp": files["webp"]}
        if svgs[key] is not None:
            sample["svg"] = svgs[key].encode()  # type: ignore[union-attr]
        batch.append((key, sample))
        if len(batch) == SHARD:
            write_tar(_shard_path(out, shards), batch)
            shards, batch = shards + 1, []
    if batch:
        write_tar(_shard_path(out, shards), batch)
        shards += 1
    return _finish(list(kept.values()), Counter(dropped.values()), failures, shards, out, plan)


def _shard_path(out: Path, index: int) -> Path:
    return out / "shards" / f"emoji-{index:05d}.tar"


def _leave_out(
    drawn: list[Artwork], coarse: np.ndarray, picks: list[Pick], splits: list[str]
) -> dict[int, str]:
    """{index: reason} of the samples that repeat another, give away a held-out one or test nothing any more."""
    styles = [artwork.source.style for artwork in drawn]
    # "person X" before "man X" before a toned one, so that the plainest name of a repeated picture stays.
    rank = sorted(range(len(drawn)), key=lambda i: (*_plainness(drawn[i]), drawn[i].key))
    alike = near_duplicates(coarse[rank], ALIKE)
    same = [(i, j) for i, j in alike if np.abs(coarse[rank[i]].astype(int) - coarse[rank[j]]).max() <= SAME]
    repeated, leaking = drop_duplicates([splits[i] for i in rank], [styles[i] for i in rank], same, alike)
    dropped = {rank[i]: "repeated" for i in repeated} | {rank[i]: "leaking" for i in leaking}
    left = [i for i in range(len(drawn)) if i not in dropped]
    lost = orphans([picks[i] for i in left], [splits[i] for i in left])
    return dropped | {left[i]: "orphan" for i in lost}


def _plainness(artwork: Artwork) -> tuple[int, int, int]:
    concept = artwork.concept
    return int(concept.tone is not None), int(concept.gender in ("man", "woman")), len(concept.subject)


def _record(artwork: Artwork, split: str, seed: int) -> dict[str, Any]:
    """The JSON of a sample."""
    concept, source = artwork.concept, artwork.source
    weight = source.weight * _GROUP_WEIGHTS.get(concept.group, 1.0)
    if concept.tone is not None:
        weight *= _TWO_TONE_WEIGHT if " and " in concept.tone else _TONE_WEIGHT
    return {
        "key": artwork.key,
        "subject": concept.subject,
        "concept": concept.concept,
        "role": concept.role,
        "style": source.style,
        "attributes": concept.attributes,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "source": source.package.spec,
        "licence": source.licence,
        "author": source.author,
        "tags": list(concept.tags),
        "captions": caption_forms(concept, source.style, artwork.key, seed),
        "split": split,
        "weight": round(weight, 4),
    }


def _finish(
    records: Sequence[dict[str, Any]],
    dropped: Counter[str],
    failures: dict[str, str],
    shards: int,
    out: Path,
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Write ATTRIBUTION.md and, last of all, the manifest that says the build is complete."""
    styles = sorted({record["style"] for record in records})
    by_split: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        by_split[record["split"]][record["style"]] += 1
    weight: Counter[str] = Counter()
    for record in records:
        weight[record["group"]] += record["weight"]
    manifest = {
        "plan": plan,
        "seed": plan["seed"],
        "size": SIZE,
        "samples": len(records),
        "shards": [_shard_path(out, i).name for i in range(shards)],
        "sources": {style: SOURCES[style].package.spec for style in styles},
        "words": [EMOJIBASE.spec, EMOJILIB.spec],
        "licences": dict(sorted(Counter(record["licence"] for record in records).items())),
        "counts": {split: dict(sorted(counts.items())) for split, counts in sorted(by_split.items())},
        "splits": {split: sum(counts.values()) for split, counts in sorted(by_split.items())},
        "group_weight": {
            name: round(value / sum(weight.values()), 4) for name, value in sorted(weight.items())
        },
        "left_out": {reason: dropped[reason] for reason in ("repeated", "leaking", "orphan")},
        "failures": failures,
    }
    with atomic_path(out / "ATTRIBUTION.md") as temporary:
        temporary.write_text(attribution(styles), encoding="utf-8")
    with atomic_path(out / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def attribution(styles: Sequence[str]) -> str:
    """A Markdown table that credits the art of these styles."""
    lines = [
        "# Art in these shards",
        "",
        "| style | package | author | licence | origin |",
        "|---|---|---|---|---|",
    ]
    for style in styles:
        source = SOURCES[style]
        lines.append(
            f"| {style} | {source.package.spec} | {source.author} | {source.licence} | {source.url} |"
        )
    lines += ["", "Pictures were rendered to pixels and scaled; nothing else was changed.",
              f"Names and keywords: {EMOJIBASE.spec} (MIT), {EMOJILIB.spec} (MIT).", ""]  # fmt: skip
    return "\n".join(lines)


def _version(style: str) -> str:
    return f"{style}: {SOURCES[style].package.spec}"
