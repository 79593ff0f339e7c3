"""README.md and docs/: every command is one that works, every link leads somewhere, and every config is in the README."""

import configparser
import importlib.util
import pathlib
import re
import shlex
import textwrap

import pytest
from absl import flags

from bt_jax import command as command_line
from bt_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Words that stand for something of the reader's.
INSTEAD = {"…": "runs/x", "DIR": "images", "OUT": "out", "RUN": "runs/x", "I": "0", "BYTES": "1000"}


def blocks(page, kind):
    return [text for language, text in BLOCK.findall(page.read_text()) if language.strip() == kind]


def commands(page):
    """The command lines of a page, without comments and the brackets of optional parts."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#.*", "", line)
            if "'" not in line:
                line = line.replace("[--", "--").replace("]", "")
            yield from (command.strip() for command in line.split(" && ") if command.strip())


def understood(command, monkeypatch):
    """Runs main.py's command up to where its task would begin."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    begun = []
    monkeypatch.setattr(command_line.pkgutil, "resolve_name", lambda task: lambda config, workdir: begun.append(config))
    words = [re.sub(rf"=({'|'.join(INSTEAD)})$", lambda m: f"={INSTEAD[m[1]]}", word) for word in shlex.split(command)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        command_line.run()
    assert not stopped.value.code, f"{command}: {stopped.value.code}"
    for config in begun:
        config_lib.check(config)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands(page, monkeypatch, capsys):
    """main.py's are run up to where their tasks begin, so that each field, method and config exists and they go together; of others
    the program and its options exist."""
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        if "my_package" in command:
            continue  # tests/test_own_method.py makes it and runs it
        if " python main.py " in f" {command} ":
            understood(command[command.index("main.py") :].split('"')[0], monkeypatch)
        elif found := re.search(r"python(?:3)? -m ([\w.]+)", command):
            name = found[1]
            assert name == "pytest" or importlib.util.find_spec(name), command
        elif found := re.search(r"python (experiments/\S+\.py)(.*)", command):
            script = (ROOT / found[1]).read_text()
            assert all(option in script for option in re.findall(r"--[\w-]+", found[2])), command
        elif found := re.match(r"pip install .*\.\[([\w,-]+)\]", command):
            assert set(found[1].split(",")) <= set(extras["options.extras_require"]), command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_is_python(page):
    for block in blocks(page, "python"):
        compile(textwrap.dedent(block), page.name, "exec")


def anchors(page):
    """As GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        for title in titles
    }


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "experiments" / "results").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if "://" not in target:
            place, _, anchor = target.partition("#")
            there = page.parent / place if place else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_the_readme_is_short_and_names_every_recipe():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    recipes = {path.stem for path in (ROOT / "configs").glob("*.py") if re.match(r"quickstart|resnet", path.name)}
    table = "\n".join(lines)
    assert all(re.search(rf"^\| `{name}[`:]", table, re.MULTILINE) for name in recipes)


def test_every_page_is_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {path.name}" in nav for path in (ROOT / "docs").glob("*.md"))
