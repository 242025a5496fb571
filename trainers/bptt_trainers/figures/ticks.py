"""Log axes with numbers that can be read: at least two of them, however little an axis spans, and none on another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, Formatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

ENOUGH, MOST = 3, 6  # ticks with a number, where an axis can have so many
DIGITS = ((1,), (1, 3), (1, 2, 5))  # of the numbers: the first of these that gives enough
PLAIN = (1e-3, 1e5)  # numbers between them are written out
TICK_SIZE = 8.0  # points, of the numbers
CHARACTER, GAP = 0.64 * TICK_SIZE, 0.8 * TICK_SIZE  # points: a digit is so wide, and two numbers so far apart


class LogTicks(LogLocator):
    """Decades; multiples of them where an axis spans few; evenly spaced numbers where it spans less than one."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The places, all of them between the two."""
        low, high = sorted((float(vmin), float(vmax)))
        for digits in DIGITS:
            ticks = _multiples(low, high, digits)
            if len(ticks) >= ENOUGH:
                return ticks
        even = MaxNLocator(nbins=4, steps=(1, 2, 2.5, 5, 10), min_n_ticks=ENOUGH).tick_values(low, high)
        return [float(tick) for tick in even if low <= tick <= high]


class LogMinors(LogLocator):
    """The ticks between those of `LogTicks`, without numbers: multiples of decades, or decades that were left out."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The places, all of them between the two."""
        low, high = sorted((float(vmin), float(vmax)))
        decades = math.log10(high / low)
        digits = (1,) if decades > MOST else range(1, 10) if decades > 1 else ()
        return _multiples(low, high, digits, most=math.inf)


class LogLabels(Formatter):
    """Numbers written out; as powers of 10 where one of them would be long."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        """The number at `value`."""
        return self.format_ticks([value])[0]

    def format_ticks(self, values: list[float]) -> list[str]:
        """The numbers at all ticks, with as many digits as tell them apart."""
        write = _plain if all(PLAIN[0] <= value < PLAIN[1] for value in values) else _power
        written = ([write(value, digits) for value in values] for digits in range(6, 18))
        return next(names for names in written if len({*names}) == len({*values}))


def log_axes(axes: Axes, which: str = "xy", labels: Formatter | None = None) -> None:
    """Make axes logarithmic, with ticks that can be read whatever is drawn afterwards.

    Args:
        axes: the axes.
        which: "x", "y" or both.
        labels: writes the numbers; None: `LogLabels`.
    """
    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(LogTicks())
        axis.set_major_formatter(LogLabels() if labels is None else labels)
        axis.set_minor_locator(LogMinors())
        axis.set_minor_formatter(NullFormatter())


def ticks_at(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Put the ticks of a log x axis where something was measured, with a name at each that has room for it.

    The least and the greatest keep theirs. A single place has ticks beside it, as any other axis.

    Args:
        axes: its x axis is logarithmic.
        places: ascending.
        names: of the places.
    """
    if len(places) < 2:
        return
    figure = axes.get_figure()
    assert figure is not None
    width = 72.0 * axes.bbox.width / figure.dpi  # points
    each = width / math.log(places[-1] / places[0])
    at = [each * math.log(place / places[0]) for place in places]
    half = [CHARACTER * len(name) / 2 for name in names]

    def room(one: int, other: int) -> bool:
        return at[other] - at[one] >= half[one] + half[other] + GAP

    last = len(places) - 1
    named = [0]
    for i in range(1, last):
        if room(named[-1], i) and room(i, last):
            named.append(i)
    shown = {*named, last}
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [name if i in shown else "" for i, name in enumerate(names)])


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}g}"


def _power(value: float, digits: int) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**exponent:.{digits}g}"
    return (rf"${factor} \times " if factor != "1" else "$") + f"10^{{{exponent}}}$"


def _multiples(low: float, high: float, digits: Sequence[int], most: float = MOST) -> list[float]:
    """Digits times powers of 10 between two numbers; of more than `most` powers every second, or third."""
    slack = 1e-9  # of rounding, at the ends
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = {
        power: [x for x in (digit * 10.0**power for digit in digits) if low * (1 - slack) <= x <= high * (1 + slack)]
        for power in powers
    }
    every = max(1, math.ceil(sum(map(bool, found.values())) / most))
    return [x for power, ticks in found.items() if power % every == 0 for x in ticks]
