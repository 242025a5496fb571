"""Pictures of states: the array or the window that a canvas ends in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from torch import Tensor

from bptt_envs.canvas import INK, SIZE, Canvas, load_pygame
from bptt_envs.checks import one_of
from bptt_envs.system import System

RENDER_MODES = ("rgb_array", "human")


class Viewer:
    """Shows states in the render mode of an environment. Viewers do not know of one another.

    Args:
        render_mode: None, "rgb_array" (an array) or "human" (a window of its own).
        fps: pictures a second, at most, in a window.
        modes: the render modes of the environment.

    Raises:
        ValueError: if `render_mode` is not None and not one of `modes`.
    """

    def __init__(self, render_mode: str | None, fps: int, modes: Sequence[str] = RENDER_MODES) -> None:
        self.render_mode = None if render_mode is None else one_of("render_mode", render_mode, modes)
        self.fps = fps
        self._window: Any = None
        self._clock: Any = None

    def show(self, system: System, state: Tensor, action: Tensor | None, caption: str) -> np.ndarray | None:
        """Draw one state; see `picture`.

        Returns:
            (400, 640, 3) uint8 for "rgb_array", None for "human" and None.
        """
        if self.render_mode is None:
            return None
        if self.render_mode == "rgb_array":
            return picture(system, state, action, caption)
        surface = _draw(system, state, action, caption, "", SIZE)
        self._show_in_window(surface, system.class_name)
        return None

    def close(self) -> None:
        """Close the window, if there is one; a second call does nothing. The next `show` opens another."""
        if self._window is not None:
            with contextlib.suppress(load_pygame().error):  # other code has called pygame.quit
                self._window.destroy()
            self._window = None

    def _show_in_window(self, surface: Any, title: str) -> None:
        pygame = load_pygame()
        if not hasattr(pygame, "Window"):
            raise DependencyNotInstalled('a window needs pygame-ce; run pip install "stable-bptt[render]".')
        if not pygame.display.get_init():
            pygame.display.init()
        if self._window is not None:
            try:
                self._present(surface)
                return
            except pygame.error:  # other code has called pygame.quit, which takes every window with it
                self._window = None
        self._window = pygame.Window(title, SIZE)
        self._clock = pygame.time.Clock()
        self._present(surface)

    def _present(self, surface: Any) -> None:
        pygame = load_pygame()
        self._window.get_surface().blit(surface, (0, 0))
        self._window.flip()
        pygame.event.pump()
        self._clock.tick(self.fps)


def picture(
    system: System,
    state: Tensor,
    action: Tensor | None = None,
    caption: str = "",
    title: str = "",
    size: tuple[int, int] = SIZE,
) -> np.ndarray:
    """Draw one state off screen.

    Args:
        system: what draws.
        state: (state_shape).
        action: (action_shape), the bounded action that led to the state, or None.
        caption: written in the upper left corner.
        title: written above the caption.
        size: width and height, in pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        DependencyNotInstalled: if pygame is missing.
    """
    surface = _draw(system, state, action, caption, title, size)
    pixels = np.frombuffer(load_pygame().image.tobytes(surface, "RGB"), dtype=np.uint8)
    return pixels.reshape(size[1], size[0], 3).copy()


def _draw(system: System, state: Tensor, action: Tensor | None, caption: str, title: str, size: tuple[int, int]) -> Any:
    canvas = Canvas(size)
    state = state.detach().cpu()
    action = None if action is None else action.detach().cpu()
    if torch.isfinite(state).all():
        system.draw(canvas, state, action)
    else:
        canvas.text((canvas.x, canvas.y), "the state is not finite", INK)
    canvas.caption(title, caption)
    return canvas.finish()
