"""A hook of MkDocs: links that leave docs/ lead to copies of their targets, so that the site is complete wherever it is.

A Markdown file becomes a page, a folder a list of its files, another file a page with a code block, or if large, a download.

See: https://www.mkdocs.org/user-guide/configuration/#hooks
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[2]
_DOCS = _ROOT / "docs"
_COPIES = "checkout"  # the folder of the site for what is outside docs/
_MAX_SHOWN = 64 * 1024  # bytes
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/, and what that links to."""
    waiting = [(page.src_uri, page.content_string) for page in files.documentation_pages()]
    while waiting:
        for target in _targets(*waiting.pop()):
            source = _source(target)
            if target.is_relative_to(_DOCS) or files.get_file_from_path(source):
                continue
            if source.endswith(".md"):
                text = _text(target)
                files.append(File.generated(config, source, content=text))
                waiting.append((source, text))
            else:
                files.append(File.generated(config, source, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to where their targets are in the site; MkDocs reports those that do not exist."""
    source = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        target = _target(source, link[1])
        return quote(os.path.relpath(_source(target), Path(source).parent)) if target else link[1]

    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def _targets(source: str, markdown: str) -> Iterator[Path]:
    for link in _LINK.findall(_CODE.sub("", markdown)):
        if target := _target(source, link):
            yield target


def _target(source: str, link: str) -> Path | None:
    """Return the file or folder of the checkout that a link on the page `source` leads to."""
    copy = source.removeprefix(f"{_COPIES}/")
    page = _ROOT / copy if copy != source else _DOCS / source
    target = Path(os.path.normpath(page.parent / unquote(link)))
    return target if target.is_relative_to(_ROOT) and target.exists() else None


def _source(target: Path) -> str:
    """Return the path that a file or folder of the checkout has among the sources of the site."""
    if target.is_relative_to(_DOCS):
        return target.relative_to(_DOCS).as_posix()
    # MkDocs leaves out what begins with a dot.
    place = f"{_COPIES}/{target.relative_to(_ROOT).as_posix()}".replace("/.", "/")
    if target.is_dir():
        return f"{place}/index.md"
    return place if target.suffix == ".md" or target.stat().st_size > _MAX_SHOWN else f"{place}.md"


def _text(target: Path) -> str:
    """Return the Markdown of the page of a file or folder outside docs/."""
    if target.suffix == ".md":
        return target.read_text("utf-8")
    name = target.relative_to(_ROOT)
    if target.is_dir():
        inner = [path.name for path in sorted(target.iterdir()) if path.is_file()]
        return f"# {name}\n\n" + "".join(f"- [{path}]({quote(path)})\n" for path in inner)
    language = {".toml": "toml", ".yml": "yaml", ".json": "json", ".py": "python"}.get(target.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n````{language}\n{target.read_text('utf-8')}````\n"
