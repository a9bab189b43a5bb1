"""The claims, each as a list of variants; and the run that measures those that are asked for.

a      the prior against no prior, and against a decoder trained on z_t (unCLIP §5.1)
b      priors against each other, and the steps of the diffusion prior (§2.2, table 3)
c      the best of n candidates by z_i · z_t (§2.2)
d      guidance: fidelity against diversity, beside a decoder of captions alone (§5.3)
e      variations: what is kept of a picture as eta grows (§3.1)
noise  how much noise on z_i suits each prior
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unclip.errors import UserError
from unclip.eval.claims import Bench, Figures, Variant, Variants, machine
from unclip.eval.model import Manipulator, Model
from unclip.files import write_text

DIFFUSION, AUTOREGRESSIVE, NONE = "diffusion", "ar", "none"
PAPER_STEPS, STEPS = 64, (5, 10, 25, 64)
SCHEDULERS = {"DDPM": {}, "DPM-Solver++": {"prior_scheduler": "dpm-solver++"}}
CANDIDATES = (1, 2, 4, 8)
GUIDANCE = (1.0, 1.25, 2.0, 3.0, 5.0, 8.0)
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5)

TITLES = {
    "a": "A prior against none",
    "b": "Priors",
    "c": "The best of n candidates",
    "d": "Guidance: fidelity against diversity",
    "e": "Variations",
    "noise": "Noise on the image embedding",
}


@dataclass(frozen=True)
class Offered:
    """What there is to compare.

    Attributes:
        priors: their names.
        decoders: of "text" (trained on z_t) and "caption" (captions alone) those that there are, with how they were
            trained: "1300 steps of 16 pictures, from given weights".
    """

    priors: Sequence[str]
    decoders: Mapping[str, str] = field(default_factory=dict)

    def variants(self, section: str) -> list[Variant]:
        """The rows of a section other than e."""
        return _ROWS[section](self)

    def notes(self, section: str) -> list[str]:
        """What the paper compares and this run cannot, or not fairly; a sentence each."""
        found = [
            f"The {name} had {self.decoders[key]}: other training than the model's own decoder, so what sets the two "
            "apart is not the claim alone."
            for key, (place, name) in _OTHER_DECODERS.items()
            if place == section and key in self.decoders
        ]
        if section == "a" and "text" not in self.decoders:
            found.append("A decoder trained on z_t is left out; give one by --text-decoder.")
        if section == "c" and AUTOREGRESSIVE not in self.priors:
            found.append("The autoregressive prior is left out: this model has none.")
        if section == "d" and "caption" not in self.decoders:
            found.append(
                "Captions alone are decoded by the model's own decoder, which learned it from the tenth of its samples "
                "that had no z_i; give one that learned nothing else by --caption-decoder."
            )
        return found


_OTHER_DECODERS = {
    "text": ("a", "decoder trained on z_t"),
    "caption": ("d", "decoder of captions alone"),
}


def _prior_rows(offered: Offered) -> list[Variant]:
    rows = [Variant(name, {"prior": name}) for name in (DIFFUSION, NONE)]
    if "text" in offered.decoders:
        rows.append(Variant("decoder trained on z_t", {"prior": NONE, "decoder": "text"}))
    return rows


def _kinds_of_prior(offered: Offered) -> list[Variant]:
    named = [Variant(name, {"prior": name}, "priors") for name in offered.priors]
    return named + [
        Variant(
            f"{DIFFUSION}, {scheduler}, {steps} steps",
            {"prior": DIFFUSION, "prior_num_inference_steps": steps, **given},
            scheduler,
            steps,
        )
        for scheduler, given in SCHEDULERS.items()
        for steps in STEPS
    ]


def _candidates(offered: Offered) -> list[Variant]:
    return [
        Variant(f"{prior}, best of {n}", {"prior": prior, "num_prior_candidates": n}, prior, n)
        for prior in (DIFFUSION, AUTOREGRESSIVE)
        if prior in offered.priors
        for n in CANDIDATES
    ]


def _guidance(offered: Offered) -> list[Variant]:
    # z_i depends on prompt and seed alone, so it is the same at all scales.
    captions: dict[str, Any] = {"captions_only": True}
    if "caption" in offered.decoders:
        captions["decoder"] = "caption"
    series = {"unCLIP": {"prior": DIFFUSION}, "captions alone": captions}
    return [
        Variant(f"{name}, scale {scale:g}", {**given, "decoder_guidance_scale": scale}, name, scale)
        for name, given in series.items()
        for scale in GUIDANCE
    ]


def _noise(offered: Offered) -> list[Variant]:
    return [
        Variant(f"{prior}, noise {level:g}", {"prior": prior, "noise_level": level}, prior, level)
        for prior in offered.priors
        for level in NOISE_LEVELS
    ]


_ROWS: dict[str, Callable[[Offered], list[Variant]]] = {
    "a": _prior_rows,
    "b": _kinds_of_prior,
    "c": _candidates,
    "d": _guidance,
    "noise": _noise,
}
VARIATIONS = [Variant(f"eta {eta:g}", {"eta": eta, "noise": "inverted"}, "inverted", eta) for eta in ETAS] + [
    Variant("fresh x_T", {"noise": "fresh"}, "fresh")
]


def check_sections(wanted: Sequence[str]) -> list[str]:
    """The sections asked for in their order, all where none is named.

    Raises:
        UserError: there is none of a name.
    """
    if unknown := [name for name in wanted if name not in TITLES]:
        raise UserError(f"unknown section {unknown[0]!r}: choose from {', '.join(TITLES)}")
    return [name for name in TITLES if name in wanted or not wanted]


def measure_claims(
    bench: Bench,
    variants: Variants,
    manipulator: Manipulator,
    offered: Offered,
    sections: Sequence[str],
    tell: Callable[[str], object] = lambda line: None,
) -> Figures:
    """Measure sections; they join those that OUT/claims.json holds of the same settings. It is written after each.

    Args:
        tell: called with a line for each row that is measured.

    Returns:
        {"settings", "machine", "sections": {section: {"title", "notes", "rows": [{"name", "series", "x", "given",
        "figures"}]}}}, with `figures` as `Bench.measure` or, for e, `Bench.vary` gives them.
    """
    base = variants()
    path = bench.out / "claims.json"
    report: Figures = {"settings": {**bench.settings, "model": base.fingerprint}, "machine": machine()}
    report["sections"] = _before(path, report["settings"])
    for section in sections:
        rows = []
        for variant in VARIATIONS if section == "e" else offered.variants(section):
            tell(f"{section}: {variant.name}")
            figures = _measure(bench, variants, manipulator, base, section, variant)
            rows.append({**vars(variant), "given": dict(variant.given), "figures": figures})
        measured = {"title": TITLES[section], "notes": offered.notes(section), "rows": rows}
        together = {**report["sections"], section: measured}
        report["sections"] = {name: together[name] for name in TITLES if name in together}
        write_text(path, json.dumps(report, indent=2))
    return report


def _measure(
    bench: Bench,
    variants: Variants,
    manipulator: Manipulator,
    base: Model,
    section: str,
    variant: Variant,
) -> Figures:
    if section == "e":
        return bench.vary(base, manipulator, variant.given)
    return bench.measure(variants(**variant.given))


def _before(path: Path, settings: Figures) -> Figures:
    """The sections of an earlier report if it has the same settings."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return dict(report["sections"]) if report["settings"] == settings else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
