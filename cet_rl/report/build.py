"""From run folders to a report."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cet_rl.report.arms import Study
from cet_rl.report.drawing import Picture
from cet_rl.report.figures import draw_all
from cet_rl.report.finding import find_runs
from cet_rl.report.grouping import studies
from cet_rl.report.page import Content, document
from cet_rl.report.reading import Run, RunReader
from cet_rl.report.sections import all_runs, overview, section
from cet_rl.report.text import clean
from cet_rl.runs.files import replacing
from cet_rl.runs.folder import write_text


@dataclass(frozen=True)
class Report:
    """What has been written.

    Attributes:
        page: the HTML file.
        pictures: the files beside it.
        runs: that the report is about.
    """

    page: Path
    pictures: tuple[Path, ...]
    runs: tuple[Run, ...]


def write_report(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None, title: str | None = None
) -> Report:
    """Write report.html, which needs no other file, and its figures as PNG files beside it.

    The same runs give the same files, byte for byte, with the same versions of what draws them.

    Args:
        folders: run folders, or folders that hold run folders at any depth.
        out: where to write; None for the first of these folders.
        title: of the page; None for the name of the first folder.

    Raises:
        ValueError: if there is no run folder in one of the folders.
        OSError: if nothing can be written.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder, or a folder that holds some")
    start = Path(folders[0] if out is None else out)
    places, problems = find_runs(folders)
    reader = RunReader()
    runs = [reader.read(place) for place in places]
    found = studies(runs)
    name = clean(title if title is not None else Path(folders[0]).resolve().name or "runs", 120)
    body: list[Content] = overview(name, runs, found, problems)
    pictures: dict[str, Picture] = {}
    for place, (slug, study, drawn) in enumerate(zip(_slugs(found), found, draw_all(found), strict=True), 1):
        own = {f"report-{slug}-{picture.name}.png": picture for picture in drawn}
        body += section(study, place, own)
        pictures |= own
    body += all_runs(runs, found, start)
    page = start / "report.html"
    try:
        start.mkdir(parents=True, exist_ok=True)
        for file, picture in pictures.items():
            with replacing(start / file) as stream:
                stream.write(picture.png)
        write_text(page, document(name, body))
    except OSError as error:
        raise OSError(f"cannot write the report to {start}: {error.strerror}") from None
    return Report(page, tuple(start / file for file in pictures), tuple(runs))


def _slugs(found: Sequence[Study]) -> list[str]:
    """Names of studies for files: letters, digits, dots and dashes, each once whatever their case."""
    slugs: list[str] = []
    for study in found:
        base = re.sub(r"[^A-Za-z0-9.]+", "-", study.title).strip("-.")[:60] or "task"
        slug, number = base, 1
        while slug.lower() in map(str.lower, slugs):
            number += 1
            slug = f"{base}-{number}"
        slugs.append(slug)
    return slugs
