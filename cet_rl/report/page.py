"""A page of HTML: one file that needs no network, no other file and no JavaScript to be read.

`Html` is text that is HTML already; whatever else is put on the page is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from cet_rl.report.drawing import Picture

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; color: #222; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 3rem; border-top: 2px solid #ddd; padding-top: 1rem; }
figure { margin: 2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .875rem; max-width: 50rem; }
nav ul, ul.plain { padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #bbb; } td.number, th.number { text-align: right; }
th button { all: unset; cursor: pointer; font-weight: bold; } th button:focus-visible { outline: 2px solid #06c; }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
tr.finished td.state { color: #176117; } tr.failed td.state, tr.damaged td.state { color: #a40000; }
tr.interrupted td.state, tr.unfinished td.state { color: #8a5a00; }
td { white-space: nowrap; } th.number { max-width: 9rem; }
td.text { white-space: normal; }
td.text:not(:empty) { min-width: 14rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f6f6f6; padding: .75rem; font-size: .8125rem; }
a { color: #0645ad; } summary { cursor: pointer; }
@media print { nav { display: none; } .wide { overflow: visible; } }
""".strip()

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", {numeric: true}) : x - y;
        return up ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}
""".strip()


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Html


def html(content: Content) -> Html:
    """Content as HTML: escaped, unless it is HTML already."""
    return content if isinstance(content, Html) else Html(escape(content, quote=True))


def element(name: str, *content: Content, **attributes: str) -> Html:
    """An element with its content; `class_` stands for the attribute class."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{html(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[Content], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(between.join(map(html, parts)))


@dataclass(frozen=True)
class Entry:
    """A cell of a table.

    Attributes:
        content: that is shown.
        value: by which it is sorted; None for the content, "" to come last.
        kind: class of the cell: "number", "text", "state" or "".
    """

    content: Content
    value: float | str | None = None
    kind: str = ""

    def as_html(self) -> Html:
        """The td element."""
        attributes = {"class_": self.kind} if self.kind else {}
        if self.value is not None:
            attributes["data_value"] = self.value if isinstance(self.value, str) else repr(self.value)
        return element("td", self.content, **attributes)


def table(
    caption: str, heads: Mapping[str, str], rows: Sequence[tuple[str, Sequence[Entry]]], *, sortable: bool = False
) -> Html:
    """A table that scrolls sideways where it is too wide.

    Args:
        caption: what it shows.
        heads: names of the columns, with the class of each.
        rows: class and cells of each.
        sortable: whether a click on a column's name sorts by it.
    """
    top = join(element("th", name, scope="col", class_=kind) for name, kind in heads.items())
    body = join((element("tr", join(map(Entry.as_html, cells)), class_=kind) for kind, cells in rows), "\n")
    whole = join(
        [
            element("thead", element("tr", top)),
            Html("\n"),
            element("tbody", Html("\n"), body, Html("\n")),
        ]
    )
    inner = element("table", whole, class_="sortable") if sortable else element("table", whole)
    return join([element("p", caption, class_="note"), element("div", inner, class_="wide")], "\n")


def figure(picture: Picture, file: str, number: int) -> Html:
    """A picture in the page itself, which leads to the file beside it."""
    data = base64.b64encode(picture.png).decode()
    image = Html(f'<img alt="{html(picture.alternative)}" src="data:image/png;base64,{data}">')
    caption = element("figcaption", element("b", f"Figure {number}."), " ", picture.caption)
    return element("figure", element("a", image, href=quote(file)), caption)


def link(target: Path, start: Path, text: str) -> Html:
    """A link to a folder, relative to the page's own."""
    way = os.path.relpath(target.resolve(), start.resolve())
    return element("a", text, href="./" + quote(os.fsencode(way)))


def document(title: str, body: Iterable[Content]) -> str:
    """The whole page. It forbids itself to load anything."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            element("style", Html(STYLE)),
        ],
        "\n",
    )
    main = element("body", Html("\n"), join(body, "\n"), Html("\n"), element("script", Html(SCRIPT)))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n{main}\n</html>\n'
