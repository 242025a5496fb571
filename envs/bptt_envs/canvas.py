"""The canvas that systems draw on, and its colors.

pygame does the drawing and is imported when the first picture is drawn, not before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gymnasium.error import DependencyNotInstalled

Color = tuple[int, int, int]
Point = tuple[float, float]

BACKGROUND: Color = (252, 252, 250)
INK: Color = (38, 43, 51)
MUTED: Color = (118, 124, 134)
FAINT: Color = (222, 225, 229)
GRID: Color = (240, 241, 242)
#: The action's color, in every picture; no body has it.
ACTION: Color = (230, 159, 0)
#: Colors of bodies, in order: those of Okabe and Ito (2008) that are legible on a light ground.
CYCLE: tuple[Color, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (90, 90, 90),
)

#: Width and height of a picture, in pixels; widths of strokes and sizes of text count in pixels of this size.
SIZE = (640, 400)

OVERSAMPLING = 3  # shapes are drawn this much larger and scaled down: antialiasing
SMALLEST_TEXT = 12  # pixels, however small the picture
FARTHEST = 30_000.0  # pixels; SDL takes seconds over shapes of 10^9


class Canvas:
    """A picture in the making, in world coordinates: metres (or the system's own unit), y up.

    Call `view` first. Positions and sizes of bodies are in world units; stroke widths and text sizes are in
    pixels of a picture of 640 x 400 and scale with it, though text stays legible. What is drawn later lies above.

    Args:
        size: width and height of the picture, in pixels.

    Raises:
        DependencyNotInstalled: if pygame is missing.
    """

    def __init__(self, size: tuple[int, int] = SIZE) -> None:
        self._pygame = load_pygame()
        self.size = size
        self._surface = self._pygame.Surface((OVERSAMPLING * size[0], OVERSAMPLING * size[1]), depth=32)
        self._surface.fill(BACKGROUND)
        self._text_scale = size[1] / SIZE[1]
        self._stroke = OVERSAMPLING * self._text_scale
        self._fonts: dict[int, Any] = {}
        self.view(0.0, 0.0, 2.0)

    def view(self, x: float, y: float, height: float) -> None:
        """Look at the world around (x, y), `height` world units from the lower to the upper edge."""
        self.x, self.y, self.height = x, y, height
        self.width = height * self.size[0] / self.size[1]
        self._scale = OVERSAMPLING * self.size[1] / height

    @property
    def left(self) -> float:
        """The x of the left edge."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """The x of the right edge."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """The y of the lower edge."""
        return self.y - self.height / 2

    @property
    def top(self) -> float:
        """The y of the upper edge."""
        return self.y + self.height / 2

    def line(self, points: Sequence[Point], color: Color = INK, width: float = 2.0) -> None:
        """Draw a line through `points` with round ends and corners; `width` in pixels."""
        pixels = [self._pixel(point) for point in points]
        radius = max(0.5, 0.5 * width * self._stroke)
        for start, end in pairwise(pixels):
            length = math.dist(start, end)
            if length > 0.0:
                across_x = (end[1] - start[1]) * radius / length
                across_y = (start[0] - end[0]) * radius / length
                sides = ((start, 1), (end, 1), (end, -1), (start, -1))
                corners = [(p[0] + side * across_x, p[1] + side * across_y) for p, side in sides]
                self._pygame.draw.polygon(self._surface, color, corners)
        for pixel in pixels:
            self._pygame.draw.circle(self._surface, color, pixel, radius)

    def polygon(self, points: Sequence[Point], color: Color = INK) -> None:
        """Fill the polygon with the corners `points`."""
        self._pygame.draw.polygon(self._surface, color, [self._pixel(point) for point in points])

    def rectangle(self, center: Point, width: float, height: float, color: Color = INK, rounding: float = 0.0) -> None:
        """Fill a rectangle whose corners are rounded with the radius `rounding`; all in world units."""
        left, top = self._pixel((center[0] - width / 2, center[1] + height / 2))
        right, bottom = self._pixel((center[0] + width / 2, center[1] - height / 2))
        box = (round(left), round(top), round(right) - round(left), round(bottom) - round(top))
        self._pygame.draw.rect(self._surface, color, box, border_radius=round(rounding * self._scale))

    def circle(self, center: Point, radius: float, color: Color = INK, width: float | None = None) -> None:
        """Draw a circle of `radius` world units: filled, or a ring whose stroke is `width` pixels wide."""
        pixels = min(radius * self._scale, FARTHEST)
        stroke = 0 if width is None else max(1, round(width * self._stroke))
        self._pygame.draw.circle(self._surface, color, self._pixel(center), pixels, stroke)

    def arrow(self, tail: Point, head: Point, color: Color = ACTION, width: float = 5.0) -> None:
        """Draw an arrow with its tip at `head`; the shaft is `width` pixels wide. Nothing if it has no length."""
        length = math.dist(tail, head)
        if not length > 0.0:
            return
        unit_x, unit_y = (head[0] - tail[0]) / length, (head[1] - tail[1]) / length
        barb = min(3.0 * width * self._stroke / self._scale, length)
        neck = (head[0] - barb * unit_x, head[1] - barb * unit_y)
        side_x, side_y = -0.55 * barb * unit_y, 0.55 * barb * unit_x
        if barb < length:
            self.line([tail, neck], color, width)
        self.polygon([head, (neck[0] + side_x, neck[1] + side_y), (neck[0] - side_x, neck[1] - side_y)], color)

    def text(self, position: Point, text: str, color: Color = MUTED, size: float = 15.0, align: str = "center") -> None:
        """Write `text` with its left end, center or right end at `position`; `size` in pixels."""
        pixels = round(1.3 * OVERSAMPLING * max(size * self._text_scale, SMALLEST_TEXT))
        if pixels not in self._fonts:
            self._fonts[pixels] = self._pygame.font.Font(None, pixels)
        label = self._fonts[pixels].render(text, True, color)
        x, y = self._pixel(position)
        shift = {"left": 0.0, "center": 0.5, "right": 1.0}[align]
        self._surface.blit(label, (round(x - shift * label.get_width()), round(y - label.get_height() / 2)))

    def ruler(self, y: float, unit: str = "") -> None:
        """Draw a horizontal scale at the height `y`, from edge to edge; grid lines rise at round numbers."""
        self.line([(self.left, y), (self.right, y)], FAINT, 2)
        step = round_up(self.width / 8)
        tick = 0.012 * self.height
        first = math.ceil(self.left / step)
        for i in range(math.floor((self.right - first * step) / step) + 1):
            x = (first + i) * step
            self.line([(x, y), (x, self.top)], GRID, 1.5)
            self.line([(x, y - tick), (x, y + tick)], MUTED, 1.5)
            if abs(x - self.x) < 0.46 * self.width:  # else the edge would cut it
                self.text((x, y - 4 * tick), f"{x:.6g} {unit}".rstrip())

    def bars(self, values: Sequence[float], labels: Sequence[str] = ()) -> None:
        """Draw a horizontal bar for each of `values`, with its label and number where there is room."""
        self.view(0.0, 0.0, 2.0)
        reach = round_up(max([1.0, *map(abs, values)]))
        space, middle = 0.55 * self.width / 2, 0.1
        row = 1.6 / max(1, len(values))
        written = len(values) <= 16
        for i, value in enumerate(values):
            y = 0.75 - (i + 0.5) * row
            end = middle + space * value / reach
            bar = min(0.6 * row, 0.14)
            self.rectangle(((middle + end) / 2, y), abs(end - middle), bar, CYCLE[0])
            if written:
                label = labels[i] if i < len(labels) else str(i)
                self.text((self.left + 0.08, y), label, INK, align="left")
                self.text((self.right - 0.08, y), f"{value:.3g}", INK, align="right")
        self.line([(middle, 0.75), (middle, -0.85)], MUTED, 1.5)
        self.text((middle - space, -0.92), f"{-reach:.6g}")
        self.text((middle, -0.92), "0")
        self.text((middle + space, -0.92), f"{reach:.6g}")

    def caption(self, title: str, text: str) -> None:
        """Write a title and a text in the upper left corner, each on its own line if it is not empty."""
        size = max(15.0 * self._text_scale, SMALLEST_TEXT) / self._text_scale
        line = 1.35 * size * self._stroke / self._scale
        x, y = self.left + 0.7 * line, self.top - 0.9 * line
        for part, color in ((title, INK), (text, MUTED)):
            if part:
                self.text((x, y), part, color, size, align="left")
                y -= line

    def finish(self) -> Any:
        """Return the finished picture, a pygame.Surface of `size`."""
        return self._pygame.transform.smoothscale(self._surface, self.size)

    def _pixel(self, point: Point) -> Point:
        """World coordinates to those of the large surface, kept where SDL can count; NaN goes to the rim."""
        x = OVERSAMPLING * self.size[0] / 2 + (point[0] - self.x) * self._scale
        y = OVERSAMPLING * self.size[1] / 2 - (point[1] - self.y) * self._scale
        return max(-FARTHEST, min(FARTHEST, x)), max(-FARTHEST, min(FARTHEST, y))


def round_up(value: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `value`, which is above 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= value)


def load_pygame() -> Any:
    """Import pygame and start its fonts, which other code may have stopped; the rest of it stays off."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else the import prints a line
    try:
        import pygame
    except ImportError as error:
        raise DependencyNotInstalled('pygame is not installed; run pip install "stable-bptt[render]".') from error
    if not pygame.font.get_init():
        pygame.font.init()
    return pygame
