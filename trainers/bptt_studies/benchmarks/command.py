"""`bptt benchmark`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from bptt_studies.benchmarks.config import BenchmarkConfig, file_of
from bptt_studies.benchmarks.document import TARGETS, tables
from bptt_studies.benchmarks.parts import PARTS
from bptt_studies.benchmarks.run import run
from bptt_trainers.commands.environment import EnvOptions, Module, parse_options
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import file_list
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.page import fill, read_page


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time updates, environment steps and starts, beside peers: about an hour.

    Everything that is compared takes turns in one process, which may use so many
    cores. Each part leaves a table (CSV, Markdown), some a figure; a part is
    written as it comes. Run again, it measures only what is missing. A number
    of another machine or version is not mixed in.

    example: bptt benchmark --parts updates stepping --batch-sizes 8 --out runs/fast
    """

    module: Module = None
    """Module to import first: one that registers the environment, if that is your own."""

    benchmark: OmitArgPrefixes[BenchmarkConfig]

    env_option: EnvOptions = ()
    """An option of the environment of the part updates. bptt envs ID lists them."""

    out: Path = Path("runs/benchmark")
    """Folder for the tables and figures."""

    document: Path | None = None
    """A Markdown page whose tables, between <!-- NAME OF A PART --> and <!-- end -->, are brought up to date."""

    redo: bool = False
    """Delete what the folder holds of these parts, and measure anew."""

    def run(self) -> None:
        """Measure, write, draw; print the tables."""
        config = self.benchmark
        with checking_arguments():
            config = replace(config, env_options=parse_options(config.env, self.env_option))
        if self.document is not None:
            read_page(self.document)  # an hour later would be late to find out
        resume = "the same command, without --redo" if self.redo else None
        try:
            with checking_arguments():
                measured = run(config, self.out, redo=self.redo)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what is finished is kept", resume) from None
        if not measured:
            return

        from bptt_studies.benchmarks.figures import FIGURES  # with it comes matplotlib
        from bptt_trainers.figures.style import save_figure

        files: dict[str, str] = {}
        shown = tables(self.out)
        for name, lines in measured.items():
            files |= {f"{name}.csv": PARTS[name].summary, f"{name}.md": "the same for readers"}
            if name in FIGURES:
                save_figure(FIGURES[name](lines), file_of(self.out, name, "png"), vector=True)
                files |= {f"{name}.png": "the same, drawn", f"{name}.pdf": "likewise, for print"}
            print(f"{name}: {PARTS[name].summary}\n\n{shown[name]}\n")
        write_atomic(file_of(self.out, TARGETS, "md"), (shown[TARGETS] + "\n").encode())
        print(f"{shown[TARGETS]}\n\n{file_list(self.out, files | {f'{TARGETS}.md': 'what was to be reached'})}")
        if self.document is not None:
            fill(self.document, shown)
