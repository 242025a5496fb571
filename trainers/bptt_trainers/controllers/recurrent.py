"""Controllers with memory: gated cells, one above the other, and a linear layer.

The cells are those of `nn.GRUCell` and `nn.LSTMCell`, with their weights in two `nn.Linear` each: the fast engine takes
these layer by layer, and many controllers at once as one batched product, for which torch's own cells have no rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bptt_envs import checks
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.networks import Range, Squash, Tanh, glorot_linear, settings_of_squash, squash_of, widths


class Recurrent(Controller, ABC):
    """Cells that remember, then a linear layer; of it are `GRU` and `LSTM`.

    The memory starts at zero in every episode. Weights of the cells are uniform within 1 / sqrt(width), as torch draws
    them; those of the linear layer Glorot-uniform, with zero biases.

    Args:
        observation_shape: shape of one observation; observations are flattened.
        action_shape: shape of one action.
        hidden: width of each cell.
        squash: as that of `MLP`.
        generator: draws the weights; torch's global one by default.

    Raises:
        ValueError: if a width is not an integer of at least 1, or another argument not what it should be.
    """

    GATES: ClassVar[int]  # of a cell, with what it would remember
    PARTS: ClassVar[int]  # vectors that a cell remembers

    squash: Squash | None

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] = (32,),
        *,
        squash: Range | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        checks.generator("generator", generator)
        self.hidden = widths("hidden", hidden)
        if not self.hidden:
            raise ValueError("hidden must name at least one width of a cell; got ().")
        sizes = [math.prod(self.observation_shape), *self.hidden]
        cells: list[nn.Module] = []
        for inputs, width in pairwise(sizes):
            checks.in_memory("hidden", self.GATES * width, inputs + width)
            cell = nn.ModuleDict()
            for name, size in (("seen", inputs), ("remembered", width)):
                cell[name] = linear = glorot_linear(size, self.GATES * width, generator)
                for parameter in linear.parameters():
                    nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
            cells.append(cell)
        self.cells = nn.ModuleList(cells)
        self.tanh = Tanh()
        self.memory_shape = (self.PARTS * sum(self.hidden),)
        self.head = glorot_linear(sizes[-1], math.prod(self.action_shape), generator)
        self.register_module("squash", squash_of(squash, self.action_shape))

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        return {"hidden": list(self.hidden)} | settings_of_squash(self.squash)

    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, *observation_shape), memories (B, *memory_shape) -> actions (B, *action_shape), memories."""
        x, remembered = observation.flatten(1), []
        parts = iter(memory.split([width for width in self.hidden for _ in range(self.PARTS)], dim=-1))
        for cell in self.cells:
            assert isinstance(cell, nn.ModuleDict)
            before = [next(parts) for _ in range(self.PARTS)]
            now = self.step(cell["seen"](x), cell["remembered"](before[0]), before)
            remembered += now
            x = now[0]
        actions: Tensor = self.head(x).view(-1, *self.action_shape)
        return actions if self.squash is None else self.squash(actions), torch.cat(remembered, dim=-1)

    @abstractmethod
    def step(self, seen: Tensor, remembered: Tensor, before: list[Tensor]) -> list[Tensor]:
        """What a cell remembers next; the first of it is what it shows.

        Args:
            seen: what its gates get from its input, (B, GATES width).
            remembered: what they get from what it showed before, likewise.
            before: what it remembered, PARTS of (B, width).
        """


class GRU(Recurrent):
    """Gated recurrent units (Cho et al., EMNLP 2014) as in `nn.GRUCell`, see `Recurrent`."""

    GATES, PARTS = 3, 1

    def step(self, seen: Tensor, remembered: Tensor, before: list[Tensor]) -> list[Tensor]:
        """What it shows is all that it remembers."""
        (reset, update, new), (reset_h, update_h, new_h) = seen.chunk(3, -1), remembered.chunk(3, -1)
        fresh = self.tanh(new + (reset + reset_h).sigmoid() * new_h)
        return [fresh + (update + update_h).sigmoid() * (before[0] - fresh)]


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) as in `nn.LSTMCell`, see `Recurrent`."""

    GATES, PARTS = 4, 2

    def step(self, seen: Tensor, remembered: Tensor, before: list[Tensor]) -> list[Tensor]:
        """What it shows, and the state of the cell."""
        taken, kept, new, shown = (seen + remembered).chunk(4, -1)
        state = kept.sigmoid() * before[1] + taken.sigmoid() * self.tanh(new)
        return [shown.sigmoid() * self.tanh(state), state]
