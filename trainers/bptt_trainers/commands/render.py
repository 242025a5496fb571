"""`bptt render`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from bptt_envs.checks import positive_integer
from bptt_trainers.analysis.trained import trained
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import checking_arguments


@dataclass(frozen=True)
class Render:
    """Draw what a trained controller does from the held-out start states.

    The ending of --out decides: .gif is an animation, .png a few moments side by
    side. Needs pygame: pip install "stable-bptt[render]".

    example: bptt render runs/two --out swing-up.gif --episodes 4
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""

    out: Path | None = None
    """The file, ending in .gif or .png. None: animation.gif in the run folder."""

    which: Literal["best", "last"] = "best"
    """The checkpoint: that of the best epoch on the training states, or of the last epoch."""

    episodes: int = 1
    """Episodes to draw, from the first held-out start states."""

    width: int = 800
    """Width of the picture, in pixels."""

    speed: float = 1.0
    """Speed of an animation: simulated seconds a second. 0.5 is slow motion."""

    hold: float = 1.5
    """How long an animation shows its last frame before it starts again, in s."""

    module: Module = None
    """Module to import first: one that registers the environment of the run, if that is your own."""

    def run(self) -> None:
        """Draw."""
        from bptt_trainers.figures.animation import ANIMATION_FORMATS, save_animation  # with it comes matplotlib
        from bptt_trainers.figures.style import checked_suffix

        out = self.out or self.run_folder / "animation.gif"
        with checking_arguments():
            checked_suffix("--out", out, ANIMATION_FORMATS)
            positive_integer("--episodes", self.episodes)
            found = trained(self.run_folder, self.which)
        trajectory = found.episodes(self.episodes)
        with checking_arguments():
            save_animation(
                found.system,
                trajectory,
                out,
                episodes=self.episodes,
                width=self.width,
                speed=self.speed,
                hold=self.hold,
            )
        print(f"{out}: {self.episodes} of the held-out episodes, {self.which} checkpoint (epoch {found.epoch})")
