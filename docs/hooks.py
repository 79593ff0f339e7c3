"""For mkdocs: the README is the first page, and the pages of results come with the site.

Links between them are those of a clone, and rewritten here. Links to other files of the repository, such as configs, become their
names, as the site has no such pages.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = "experiments/results"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for path in sorted((ROOT / RESULTS).rglob("*")):
        if path.suffix in (".md", ".png"):
            name = f"results/{path.relative_to(ROOT / RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = posixpath.dirname(_in_clone(here))

    def link(found):
        text, target, anchor = found.groups()
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        there = _in_site(place)
        if there is None:
            return text
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(link, markdown)


def _in_clone(page: str) -> str:
    """The file of a page of the site, from the repository's root."""
    if page == "index.md":
        return "README.md"
    return page.replace("results/", f"{RESULTS}/", 1) if page.startswith("results/") else f"docs/{page}"


def _in_site(file: str) -> str | None:
    """The inverse; None for files that are no page."""
    if file == "README.md":
        return "index.md"
    for top, there in ((f"{RESULTS}/", "results/"), ("docs/", "")):
        if file.startswith(top) and file.endswith((".md", ".png")):
            return there + file[len(top) :]
    return None
