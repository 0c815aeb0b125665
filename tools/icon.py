"""Draw docs/images/icon.png, the pack's icon: a latent's cells, coloured by score, the best one ticked.

python tools/icon.py
"""

from pathlib import Path

from PIL import Image, ImageDraw

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "icon.png"
SIDE, SMOOTH = 400, 4  # pixels; drawn so many times larger, then reduced
CELLS, MARGIN, GAP = 4, 44, 12
BEST = (2, 1)  # column, row
GROUND, LINE = "#15181f", "#ffffff"
RAMP = ((38, 44, 74), (52, 88, 150), (45, 160, 160), (240, 190, 80))  # from the worst score to the best


def ramp(score: float) -> tuple[int, ...]:
    """Colour of a score in 0..1."""
    at = min(score, 0.999) * (len(RAMP) - 1)
    low, high, share = RAMP[int(at)], RAMP[int(at) + 1], at % 1
    return tuple(round(a + (b - a) * share) for a, b in zip(low, high))


def draw_icon() -> Image.Image:
    """The icon, RGBA with round corners."""
    image = Image.new("RGBA", (SIDE * SMOOTH, SIDE * SMOOTH))
    draw = ImageDraw.Draw(image)

    def rounded(left: float, top: float, side: float, radius: float, **style) -> None:
        box = [value * SMOOTH for value in (left, top, left + side, top + side)]
        draw.rounded_rectangle(box, radius * SMOOTH, **style)

    rounded(0, 0, SIDE - 1, 76, fill=GROUND)
    cell = (SIDE - 2 * MARGIN - (CELLS - 1) * GAP) / CELLS
    for row in range(CELLS):
        for column in range(CELLS):
            left, top = MARGIN + column * (cell + GAP), MARGIN + row * (cell + GAP)
            away = ((column - BEST[0]) ** 2 + (row - BEST[1]) ** 2) ** 0.5
            if (column, row) == BEST:
                rounded(left - 9, top - 9, cell + 18, 23, fill=LINE)
            rounded(left, top, cell, 15, fill=ramp(1 - away / 3))
            if (column, row) == BEST:
                tick = [(0.24, 0.52), (0.43, 0.71), (0.77, 0.30)]
                points = [((left + x * cell) * SMOOTH, (top + y * cell) * SMOOTH) for x, y in tick]
                draw.line(points, fill=GROUND, width=9 * SMOOTH, joint="curve")
                for x, y in (points[0], points[-1]):
                    end = 4.5 * SMOOTH
                    draw.ellipse([x - end, y - end, x + end, y + end], fill=GROUND)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw_icon().quantize(128).save(TARGET, optimize=True)
