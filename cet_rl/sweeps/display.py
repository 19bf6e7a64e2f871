"""The table of a sweep's cells, on stderr: live in a terminal, a line for each cell that ends elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell
from cet_rl.sweeps.states import STATES, CellState, State

STYLES: dict[State, str] = {
    "finished": "green",
    "running": "bold",
    "partial": "yellow",
    "failed": "red",
    "waiting": "dim",
}

URGENCY: tuple[State, ...] = ("failed", "running", "partial", "waiting", "finished")
"""Which cells a terminal shows first when it is too small for all."""

_TITLES = ("cell", "state", "steps", "score", "steps/s", "")

_GAP = 2
"""Characters between two columns."""
_SHORTEST_NOTE = 12
"""Characters of an error, or of who runs a cell, below which it says nothing."""

AROUND = 6
"""Lines of a terminal that the rows of the table leave free."""

WIDTH = 160
"""Of a table that is not printed to a terminal."""


def counts(states: Mapping[str, CellState]) -> dict[State, int]:
    """How many cells there are of each state."""
    found = [state.state for state in states.values()]
    return {state: found.count(state) for state in STATES}


def describe_counts(states: Mapping[str, CellState]) -> str:
    """The same in words: "3 finished, 2 running, 7 waiting"."""
    return ", ".join(f"{number} {state}" for state, number in counts(states).items() if number)


class SweepDisplay:
    """How far a sweep has come.

    Args:
        cells: of the sweep.
        workers: at a time.
        quiet: print nothing but errors.
    """

    def __init__(self, cells: Sequence[Cell], workers: int, *, quiet: bool) -> None:
        self.cells, self.workers, self.quiet = cells, workers, quiet
        self._before: dict[str, CellState] = {}
        self._live: Live | None = None

    def start(self, folder: SweepFolder, states: Mapping[str, CellState]) -> None:
        """Begin with what is there already."""
        self._before = dict(states)
        self._say(f"sweep folder {folder.path}")
        self._say(f"{len(self.cells)} cells: {describe_counts(states)}; {self.workers} at a time")
        failed = counts(states)["failed"]
        if failed:
            self._say(f"--retry runs the {failed} that failed again")
        if sys.stderr.isatty() and not self.quiet:
            console = Console(stderr=True)
            self._live = Live(
                self._table(states, console.height - AROUND, console.width), console=console, auto_refresh=False
            )
            self._live.start()

    def update(self, states: Mapping[str, CellState]) -> None:
        """Show what has become of the cells since."""
        changed = [c for c in self.cells if states[c.name].state != self._before[c.name].state]
        self._before = dict(states)
        if self._live is not None:
            console = self._live.console
            self._live.update(self._table(states, console.height - AROUND, console.width), refresh=True)
            return
        changed = [cell for cell in changed if states[cell.name].state in ("finished", "failed")]
        now = counts(states)
        for number, cell in enumerate(changed, start=1 + now["finished"] + now["failed"] - len(changed)):
            state = states[cell.name]
            what = f"failed: {_first_line(state.error)}" if state.state == "failed" else _outcome(state)
            self._say(f"[{number}/{len(self.cells)}] {cell.name}: {what}")

    def stopping(self, running: int) -> None:
        """Say that workers have been asked to stop."""
        if running:
            self._say(f"stopping: waiting for {running} cells to save where they are; Ctrl-C again kills them")

    def conclude(self, folder: SweepFolder, states: Mapping[str, CellState]) -> None:
        """Say what came out."""
        for line in self._failures(folder, states):
            print(line, file=sys.stderr, flush=True)
        hints = []
        if counts(states)["failed"]:
            hints.append("--retry runs again what failed")
        if counts(states)["partial"] + counts(states)["waiting"]:
            hints.append("the same command goes on")
        self._say("; ".join([describe_counts(states), *hints]))
        self._say(f"results: {folder.results_file}")

    def print_once(self, folder: SweepFolder, states: Mapping[str, CellState]) -> None:
        """Print the whole table to stdout."""
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        console.print(f"sweep folder {folder.path}", markup=False, highlight=False)
        console.print(self._table(states, len(self.cells), console.width))
        for line in self._failures(folder, states):
            console.print(line, markup=False, highlight=False)

    def _failures(self, folder: SweepFolder, states: Mapping[str, CellState]) -> Iterator[str]:
        """A line for each cell that has failed: why, and where to read more."""
        for cell in self.cells:
            state = states[cell.name]
            if state.state == "failed":
                log = folder.log_file(cell.name)
                where = f" (see {log})" if log.is_file() else ""
                yield f"{cell.name} failed: {_first_line(state.error)}{where}"

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self, states: Mapping[str, CellState], rows: int, width: int) -> Table:
        """At most so many rows, the most urgent, in the file's order, each on a line of so many characters."""
        urgent = sorted(self.cells, key=lambda cell: URGENCY.index(states[cell.name].state))
        shown = {cell.name for cell in urgent[: max(rows, 1)]}
        hidden = len(self.cells) - len(shown)
        caption = describe_counts(states) + (f" ({hidden} not shown)" if hidden else "")
        table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
        columns = _columns([_row(cell, states[cell.name]) for cell in self.cells if cell.name in shown], width)
        for title, _ in columns:
            table.add_column(title, no_wrap=True, justify="right" if title.startswith("steps") else "left")
        for texts in zip(*(texts for _, texts in columns), strict=True):
            named = zip((title for title, _ in columns), texts, strict=True)
            table.add_row(*(Text(text, STYLES[text] if title == "state" else "") for title, text in named))
        return table

    def _say(self, text: str) -> None:
        if not self.quiet:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)


def _row(cell: Cell, state: CellState) -> list[str]:
    total = cell.values["total_steps"]
    far = "" if state.step is None else f"{state.step:,} of {total:,}"
    speed = "" if state.speed is None else f"{state.speed:,.0f}"
    note = _first_line(state.error) or (f"on {state.owner}" if state.owner else "")
    return [cell.name, state.state, far, state.score, speed, note]


def _columns(rows: list[list[str]], width: int) -> list[tuple[str, list[str]]]:
    """Titles and texts of the columns that so narrow a table has room for; its notes and names are cut to fit.

    Which cell is in what state is always said; a name is cut at its beginning, as its end tells it from others.
    """
    columns = dict(zip(_TITLES, map(list, zip(*rows, strict=True)), strict=True))

    def room() -> int:
        return width - sum(max(map(cell_len, (title, *texts))) + _GAP for title, texts in columns.items()) + _GAP

    notes = columns.pop("")
    if any(notes) and room() > _SHORTEST_NOTE:
        columns[""] = [_cut(note, room() - _GAP) for note in notes]
    for title in ("steps/s", "score", "steps"):
        if room() < 0:
            del columns[title]
    if room() < 0:
        longest = max(max(map(cell_len, columns["cell"])) + room(), 2)
        columns["cell"] = [
            name if cell_len(name) <= longest else "…" + name[1 - longest :] for name in columns["cell"]
        ]
    return list(columns.items())


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _outcome(state: CellState) -> str:
    speed = "" if state.speed is None else f"{state.speed:,.0f} steps/s"
    return ", ".join(part for part in ("finished", state.score, speed) if part)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
