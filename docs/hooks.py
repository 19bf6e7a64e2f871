"""Make pages of the site out of README.md, CONTRIBUTING.md, CHANGELOG.md and the notebooks, and mend their links.

MkDocs calls `on_files` and `on_page_markdown`. Files that are links in the repository stay links: to the page that
shows the file if the site has one, else to the file in the repository. What exists nowhere is left as it is, and
fails `mkdocs build --strict`.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {f"examples/{path.name}": f"tutorials/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"""(\]\(|(?:src|srcset|href)=")([^)\s#:"]+)""")


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text, pictures = notebook(json.loads(text), Path(page).stem)
            text = f"[Download this notebook]({config.repo_url}/raw/main/{source})\n\n{text}"
            for name, content in pictures.items():
                files.append(File.generated(config, f"tutorials/{name}", content=content))
        files.append(File.generated(config, page, content=text))
    return files


def notebook(cells: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in cells["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        printed = ""
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{len(pictures)}.png"
                pictures[picture] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the cell above]({picture})")
            else:
                printed += "".join(output.get("text") or data.get("text/plain", ""))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f"docs/{here}"))

    def mend(found: re.Match[str]) -> str:
        lead, target = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        shown = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(shown):
            return lead + posixpath.relpath(shown, posixpath.dirname(here) or ".")
        if (ROOT / path).exists():
            return f"{lead}{config.repo_url}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
        return lead + target

    return LINK.sub(mend, markdown)
