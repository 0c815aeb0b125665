"""Emoji as pictures with captions that nobody of this project drew: icon sets from the package index, rendered and augmented.

The sets are npm packages of Iconify, one for each artist; `npm pack` brings them into the cache. A name such as "cat-face" is
another person's caption, and the sets agree in most of them. Skin tones and flags are left out.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..demo.training import CACHE, cached

FOLDER = CACHE / "emoji"
TRAINING = {"noto": "1.2.9", "noto-v1": "1.2.5", "twemoji": "1.2.5", "openmoji": "1.2.29", "emojione": "1.2.3"}
CHOSEN_ON, FINAL = "emojione-v1", "fluent-emoji-flat"
VERSIONS = {**TRAINING, CHOSEN_ON: "1.2.3", FINAL: "1.2.6"}
SIDE, VIEWS = 64, 8

LEFT_OUT = re.compile(r"skin-tone|\btone[1-5]\b|\bflags?\b|regional-indicator")
# what would no longer be what it is called, in a mirror or in another colour
ONE_SIDED = re.compile(
    r"\b(left|right|arrows?|clockwise|counterclockwise|anticlockwise|letters?|latin|digits?|keycap|numbers?|input|\w*oclock|\w+-thirty|"
    r"clock|watch|button|mark|symbols?|sign|back|end|on|soon|top|facing|reversed?|abc|atm|sos|hundred|points|calendar|currency|dollar|"
    r"euro|pound|yen|copyright|registered|trade|1st|2nd|3rd|\d+|quarter|crescent|waxing|waning|aries|taurus|gemini|cancer|leo|virgo|"
    r"libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)\b"
)
COLOURED = re.compile(
    r"\b(red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|grey|gray|gold|silver|light|dark|rainbow|blond|hair)\b"
)


@dataclass(frozen=True)
class Drawing:
    """One artist's picture of one thing: the artist's set, the name as the sets agree on it, and the markup in its square frame."""

    artist: str
    name: str
    body: str
    box: tuple[float, float, float, float]  # left, top, width, height


def caption_of(name: str) -> str:
    """ "cat-face" → "cat face"."""
    return " ".join(name.split("-"))


def may_flip(name: str) -> bool:
    """Whether a mirrored picture still shows what the name says."""
    return not ONE_SIDED.search(name)


def may_turn_hue(name: str) -> bool:
    """Whether the name says nothing of colours."""
    return not COLOURED.search(name)


# --------------------------------------------------------------------------------------------------------- the sets


def read_set(artist: str) -> dict:
    """The icon set as the package has it, downloaded on first use.

    Raises:
        ValueError: npm is missing, or does not bring it.
    """
    package = f"@iconify-json/{artist}@{VERSIONS[artist]}"
    path = FOLDER / "sets" / f"{artist}-{VERSIONS[artist]}.tgz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                ["npm", "pack", package, "--silent", "--pack-destination", str(path.parent)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", "") or error
            raise ValueError(
                f"Got no {package} ({told}), expected npm to fetch it. Install Node.js, or put it at {path}."
            ) from error
        (path.parent / done.stdout.strip()).replace(path)
    return icons_of(path)


def icons_of(path: Path) -> dict:
    """`icons.json` of a package."""
    with tarfile.open(path) as tar:
        member = tar.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def names_of(icons: dict) -> dict[str, list[str]]:
    """By the icons' own names, without skin tones, flags and what is withdrawn: every name that the set gives them, their own first."""
    found = {
        name: [name]
        for name, icon in icons["icons"].items()
        if not icon.get("hidden") and not LEFT_OUT.search(name)
    }
    for alias, told in icons.get("aliases", {}).items():
        if told["parent"] in found and not LEFT_OUT.search(alias):
            found[told["parent"]].append(alias)
    return found


def agreed_names(names: dict[str, list[str]], votes: Counter[str]) -> dict[str, str]:
    """By the icons' own names: that of their names which most sets have, each given once; an icon's own name before its aliases."""
    taken: set[str] = set()
    found = {}
    for own, many in names.items():
        best = max(many, key=lambda name: votes[name])  # the first of equals
        if best in taken or (best != own and best in names):
            best = own
        if best not in taken:
            taken.add(best)
            found[own] = best
    return found


def count_votes(sets: Iterable[dict[str, list[str]]]) -> Counter[str]:
    """In how many sets each name is one of an icon."""
    return Counter(name for names in sets for name in {name for many in names.values() for name in many})


def drawings_of(artist: str, icons: dict, votes: Counter[str]) -> list[Drawing]:
    """The drawings of a set, sorted by name."""

    def box(icon: dict) -> tuple[float, float, float, float]:
        sized = {"left": 0, "top": 0, "width": 16, "height": 16, **icons, **icon}
        width, height = sized["width"], sized["height"]
        side = max(width, height)
        return sized["left"] - (side - width) / 2, sized["top"] - (side - height) / 2, side, side

    chosen = agreed_names(names_of(icons), votes)
    found = [Drawing(artist, name, icons["icons"][own]["body"], box(icons["icons"][own])) for own, name in chosen.items()]
    return sorted(found, key=lambda drawing: drawing.name)


def read_training() -> tuple[list[Drawing], Counter[str]]:
    """All drawings of the training sets, and how many of the sets have each name."""
    sets = {artist: read_set(artist) for artist in TRAINING}
    votes = count_votes(names_of(icons) for icons in sets.values())
    return [drawing for artist, icons in sets.items() for drawing in drawings_of(artist, icons, votes)], votes


def read_unseen(artist: str, trained: Sequence[Drawing], votes: Counter[str]) -> list[Drawing]:
    """The drawings of another artist whose names the training sets have."""
    known = {drawing.name for drawing in trained}
    return [drawing for drawing in drawings_of(artist, read_set(artist), votes) if drawing.name in known]


# --------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class View:
    """How a drawing is shown: moved by shares of its frame, scaled, mirrored, its hue turned by a share of a circle."""

    across: float = 0.0
    down: float = 0.0
    scale: float = 1.0
    flip: bool = False
    hue: float = 0.0


def views_of(drawing: Drawing, count: int = VIEWS) -> list[View]:
    """Seeded views of a drawing; the first is the drawing as it is."""
    rng = random.Random(f"{drawing.artist}/{drawing.name}")

    def sample() -> View:
        scale = rng.uniform(0.65, 1.05)
        room = 0.06 + max(0.0, 1 - scale) / 2
        return View(
            rng.uniform(-room, room), rng.uniform(-room, room), scale,
            may_flip(drawing.name) and rng.random() < 0.5, rng.uniform(-0.08, 0.08) if may_turn_hue(drawing.name) else 0.0,
        )  # fmt: skip

    return [View(), *(sample() for _ in range(count - 1))]


def markup(drawing: Drawing, view: View) -> str:
    """The drawing as an SVG document, moved, scaled and mirrored about its middle."""
    left, top, width, height = drawing.box
    x, y = left + width / 2, top + height / 2
    sideways = -view.scale if view.flip else view.scale
    shown = (
        f"translate({x + view.across * width:g} {y + view.down * height:g}) scale({sideways:g} {view.scale:g}) "
        f"translate({-x:g} {-y:g})"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}"><g transform="{shown}">{drawing.body}</g></svg>'
    )


def render(drawing: Drawing, view: View = View(), side: int = SIDE) -> Tensor:
    """A picture on white: uint8 (3, side, side)."""
    import resvg_py
    from torchvision.io import ImageReadMode, decode_png
    from torchvision.transforms.functional import adjust_hue

    png = resvg_py.svg_to_bytes(
        svg_string=markup(drawing, view), width=side, height=side, background="#ffffff", skip_system_fonts=True
    )
    picture = decode_png(torch.frombuffer(bytearray(png), dtype=torch.uint8), ImageReadMode.RGB)
    return adjust_hue(picture, view.hue) if view.hue else picture


def pictures_of(drawings: Sequence[Drawing], views: int) -> Tensor:
    """Views of drawings of one or several artists, from the cache after the first time: uint8 (N, views, 3, 64, 64)."""

    def parts() -> Iterator[Tensor]:
        for artist in dict.fromkeys(drawing.artist for drawing in drawings):
            own = [drawing for drawing in drawings if drawing.artist == artist]

            def make(own: list[Drawing] = own) -> dict[str, Tensor]:
                return {"pictures": torch.stack([torch.stack([render(d, view) for view in views_of(d, views)]) for d in own])}

            yield cached(f"emoji/pictures_{artist}_{len(own)}_{views}", make)["pictures"]

    return torch.cat(list(parts()))
