"""Concept sets inside the host: the shipped ones, the user's own files, and lines typed into a node."""

from dataclasses import replace
from pathlib import Path

import folder_paths

from ...methods.concepts import ConceptDirections, concept_directions
from ...models.concepts import (
    ConceptError,
    ConceptSet,
    ScorerId,
    parse_concepts,
    read_concepts,
    shipped_concepts,
    shipped_file,
    shipped_names,
)
from ...models.fit import Fit, safety_fit
from .folders import LATENT_CLIP, text_fingerprint
from .latent_clip import LoadedLatentCLIP
from .pixel_clip import LoadedPixelCLIP

FOLDER = "concepts"  # below ComfyUI/models/latent_clip
TYPED = "typed below"


def concept_options() -> list[str]:
    """Choices that a node offers: the shipped sets, typed lines, and every JSON file of models/latent_clip/concepts."""
    return [*shipped_names(), TYPED, *sorted(_files())]


def load_concepts(choice: str, typed: str = "", categories: str = "", thresholds: str = "") -> ConceptSet:
    """Load the concept set that a node's widgets describe.

    Args:
        choice: one of `concept_options`. typed: lines, for the choice "typed below".
        categories: the names to use, separated by commas; empty for all.
        thresholds: one number for all, or lines `name: number`; empty for those of the set.

    Raises:
        ConceptError: says what is wrong with which of them.
    """
    if choice in shipped_names():
        concepts = shipped_concepts(choice)
    elif choice == TYPED:
        concepts = parse_concepts(typed)
    elif choice in (files := _files()):
        concepts = read_concepts(files[choice])
    else:
        raise ConceptError(f"Got the concept set {choice!r}, expected one of: {', '.join(concept_options())}.")
    return concepts.only(categories).with_thresholds(thresholds)


def concepts_fingerprint(choice: str | None) -> str:
    """Fingerprint of a choice's file, for `fingerprint_inputs`; of all sets if the choice comes from another node."""
    files = {name: shipped_file(name) for name in shipped_names()}
    files |= {TYPED: shipped_file()} | _files()  # typed lines borrow the shipped set's anchors
    return text_fingerprint(files.values() if choice is None else [files.get(choice, Path(choice))])


def scorer_id(clip: LoadedLatentCLIP, fit: Fit, views: int = 0, closer: bool = False) -> ScorerId:
    """Identity of a safety node's scorer; guidance and rewards have no perturbations and no full-resolution windows."""
    return ScorerId(clip.name, clip.identity, safety_fit(fit), views, closer)


def directions_for(
    clip: LoadedLatentCLIP, concepts: ConceptSet, fit: Fit, views: int = 0, closer: bool = False
) -> ConceptDirections:
    """Return `directions` if the set's thresholds hold for this scorer.

    Raises:
        ConceptError: they were calibrated with another Latent-CLIP, fit, number of perturbations or kind of windows.
    """
    concepts.check_scorer(scorer_id(clip, fit, views, closer))
    return directions(clip, concepts)


def directions(clip: LoadedLatentCLIP, concepts: ConceptSet) -> ConceptDirections:
    """Encode the set's texts with this CLIP, once; they are cached with the model."""
    return concept_directions(clip.encode_text, concepts, clip.logit_scale)


def directions_for_pixels(clip: LoadedPixelCLIP, concepts: ConceptSet, fit: Fit) -> ConceptDirections:
    """Encode the set's texts with a pixel CLIP.

    Raises:
        ConceptError: its thresholds were calibrated, which no pixel CLIP was; type thresholds.
    """
    concepts.check_scorer(ScorerId(clip.name, "", safety_fit(fit)))
    named = replace(concepts, categories=tuple(replace(c, name=f"{c.name}, in pixels") for c in concepts.categories))
    return concept_directions(clip.text.encode, named, clip.logit_scale)


def _files() -> dict[str, Path]:
    folders = [Path(folder) / FOLDER for folder in folder_paths.get_folder_paths(LATENT_CLIP)]
    found = (path for folder in reversed(folders) for path in folder.glob("*.json"))
    return {path.name: path for path in found if not path.name.startswith(".")}
