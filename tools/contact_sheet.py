"""Draw a ranked batch as one picture: the kept images large and framed, the others beside them, scores as bars."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINE = (250, 249, 246), (38, 40, 46), (128, 130, 138), (222, 220, 214)
GOLD, GREEN, RED = (214, 158, 46), (46, 140, 90), (196, 72, 66)
MARGIN, GAP, FOOT = 40, 18, 34  # page margin, space between tiles, height of the line under a tile
LARGE, SMALL = 256, 157  # edges of kept and other tiles: two rows of large ones are as high as three of small ones


@dataclass(frozen=True)
class Entry:
    """One image of the batch: picture, score, and the verdict of an independent judge."""

    picture: Image.Image
    score: float
    right: bool


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: nothing to install, the same everywhere."""
    return ImageFont.load_default(size)


def draw_sheet(title: str, subtitle: str, notes: list[str], ranked: list[Entry], keep: int = 4) -> Image.Image:
    """Lay out a batch that is sorted from best to worst.

    Args:
        title, subtitle: two lines at the top.
        notes: short lines at the bottom, what was measured.
        ranked: best first; the first `keep` (at most 4) are framed, up to 12 others follow in a grid.
    """
    large_row, small_row = LARGE + FOOT + GAP, SMALL + FOOT + GAP
    right = MARGIN + 2 * (LARGE + GAP) + 34
    width = right + 4 * (SMALL + GAP) - GAP + MARGIN
    top = 176
    height = top + 2 * large_row + 22 + 27 * len(notes) + MARGIN - 8
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 34), title, INK, font(38))
    draw.text((MARGIN, 88), subtitle, FAINT, font(21))
    draw.text((MARGIN, top - 38), "kept", GOLD, font(20))
    draw.text((right, top - 38), "passed over", FAINT, font(20))
    scores = [entry.score for entry in ranked]
    for rank, entry in enumerate(ranked[: keep + 12]):
        if rank < keep:
            x, y, edge = MARGIN + rank % 2 * (LARGE + GAP), top + rank // 2 * large_row, LARGE
        else:
            column, row = (rank - keep) % 4, (rank - keep) // 4
            x, y, edge = right + column * (SMALL + GAP), top + row * small_row, SMALL
        filled = (entry.score - min(scores)) / ((max(scores) - min(scores)) or 1.0)
        draw_tile(sheet, entry, rank + 1, (x, y), edge, filled, framed=rank < keep)
    bottom = top + 2 * large_row + 14
    draw.line((MARGIN, bottom, width - MARGIN, bottom), LINE, 2)
    for i, note in enumerate(notes):
        draw.text((MARGIN, bottom + 16 + 27 * i), note, FAINT, font(18))
    return sheet


def draw_tile(
    sheet: Image.Image, entry: Entry, rank: int, corner: tuple[int, int], edge: int, filled: float, framed: bool
) -> None:
    """One picture with its rank, score, a bar from the worst to the best score of the batch, and the judge's mark."""
    draw, (x, y) = ImageDraw.Draw(sheet), corner
    if framed:
        draw.rounded_rectangle((x - 6, y - 6, x + edge + 5, y + edge + 5), 8, GOLD)
    sheet.paste(entry.picture.convert("RGB").resize((edge, edge), Image.Resampling.LANCZOS), corner)
    size = 19 if framed else 15
    line = y + edge + (14 if framed else 8)
    draw.text((x, line), f"{rank}", INK if framed else FAINT, font(size))
    score = f"{entry.score:.3f}"
    score_width = draw.textlength(score, font(size))
    mark = size  # the judge's mark is as wide as the text is high
    draw.text((x + edge - mark - 8 - score_width, line), score, INK if framed else FAINT, font(size))
    draw_mark(draw, (x + edge - mark, line + 2), mark, entry.right)
    left, end, middle = x + 28, x + edge - mark - 18 - score_width, line + size * 0.62
    draw.rounded_rectangle((left, middle - 3, end, middle + 3), 3, LINE)
    if filled > 0.02:
        draw.rounded_rectangle(
            (left, middle - 3, left + filled * (end - left), middle + 3), 3, GOLD if framed else FAINT
        )


def draw_mark(draw: ImageDraw.ImageDraw, corner: tuple[float, float], size: float, right: bool) -> None:
    """A tick or a cross, drawn because not every font has one."""
    x, y = corner
    if right:
        points = [
            (x + size * 0.12, y + size * 0.5),
            (x + size * 0.4, y + size * 0.78),
            (x + size * 0.92, y + size * 0.16),
        ]
        draw.line(points, GREEN, 3, joint="curve")
    else:
        for a, b in (((0.15, 0.15), (0.82, 0.82)), ((0.15, 0.82), (0.82, 0.15))):
            draw.line([(x + size * u, y + size * v) for u, v in (a, b)], RED, 3)
