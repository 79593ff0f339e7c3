"""README.md and docs/: every command and every line of Python works, every link leads somewhere, and every config is in the README."""

import argparse
import ast
import builtins
import configparser
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import runpy
import shlex
import sys
import textwrap
import types

import numpy as np
import pytest
from absl import flags
from packaging.requirements import Requirement

import bt_jax
from bt_jax import command as command_line
from bt_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:python|pip install|bt_jax) [^`\n]+)`")
# Words that stand for something of the reader's.
INSTEAD = {
    "…": "runs/x", "DIR": "images", "OUT": "out", "RUN": "runs/x", "I": "0", "BYTES": "1000", "FILE": "quickstart",
    "NAME:METHOD": "quickstart:simclr", "CLAIM": "loss_parts", "WORKDIR…": "runs/x",
}  # fmt: skip
LAUNCHERS = {"gcloud": "TPU pod", "srun": "Slurm", "mpirun": "Open MPI"}  # and what the comment above must say
SHELL = ("python3 -m venv", "source .venv/bin/activate", "export PYTHONPATH=.")
NOT_REQUIRED = {"torch", "torchvision", "safetensors", "timm"}  # which a page may need, if its code says so
EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")
EXTRAS = EXTRAS["options.extras_require"]


def blocks(page, kind):
    return [text for language, text in BLOCK.findall(page.read_text()) if language.strip() == kind]


def commands(page):
    """(a command, the comment above it) of a page, without other comments and the brackets of optional parts."""
    for block in blocks(page, ""):
        above = ""
        for line in block.replace("\\\n", " ").splitlines():
            above = line if line.startswith("#") else above
            line = re.sub(r"(^|\s)#.*", "", line)
            if "'" not in line:
                line = line.replace("[--", "--").replace("]", "")
            yield from ((command.strip(), above) for command in line.split(" && ") if command.strip())
    yield from ((span, "") for span in SPAN.findall(BLOCK.sub("", page.read_text())))


def words_of(command):
    return [
        re.sub(rf"(^|=)({'|'.join(INSTEAD)})$", lambda m: m[1] + INSTEAD[m[2]], word) for word in shlex.split(command)
    ]


def understood(command, monkeypatch):
    """Runs main.py's command up to where its task would begin: in a folder of its own, unless it is the quickstart, which is the
    first command of a reader and fills runs/quickstart."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    begun = []
    monkeypatch.setattr(command_line.pkgutil, "resolve_name", lambda task: lambda *given: begun.append(given))
    monkeypatch.setattr("sys.argv", words_of(command))
    with pytest.raises(SystemExit) as stopped:
        command_line.run()
    assert not stopped.value.code, f"{command}: {stopped.value.code}"
    for config, workdir in begun:
        config_lib.check(config)
        # A page of a run is made in its folder; everything else is refused there, or finds a run that is complete.
        if workdir == "runs/quickstart" and config.task != "report":
            same = config_lib.flatten(config) == config_lib.flatten(bt_jax.load_config("quickstart"))
            assert same, f"{command} needs a --workdir of its own"


class Parsed(Exception):
    pass


def parsed(run, monkeypatch):
    """What `run` makes of its arguments; it is stopped there."""

    def parse(parser, arguments=None):
        raise Parsed(original(parser, arguments))

    original = argparse.ArgumentParser.parse_args
    with monkeypatch.context() as patch, pytest.raises(Parsed) as stopped:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        run()
    return stopped.value.args[0]


def check_module(command, monkeypatch):
    """`python -m MODULE ARGUMENTS`: ours has an argument parser that takes them, or takes folders alone."""
    name, *arguments = words_of(command.partition(" -m ")[2])
    if name == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.endswith(".py")), command
    elif name == "bt_jax.evaluation.table":
        with pytest.raises(bt_jax.UserError, match="runs/x has no result"):
            importlib.import_module(name).main(arguments)
    elif not arguments or arguments == [">", "docs/fields.md"]:  # in a sentence
        assert importlib.util.find_spec(name), command
    else:
        parsed(lambda: importlib.import_module(name).main(arguments), monkeypatch)


def check_script(command, monkeypatch):
    """`python experiments/SCRIPT.py ARGUMENTS`, and the claims that it names exist."""
    monkeypatch.setattr("sys.argv", words_of(command)[1:])
    monkeypatch.setattr("sys.path", list(sys.path))
    known = parsed(lambda: runpy.run_path(sys.argv[0], run_name="__main__"), monkeypatch)
    claims = [word for word in known.words if word not in ("plan", "report", "again")]
    assert all((ROOT / f"experiments/claims/{claim}.py").exists() for claim in claims), command


def check_install(command):
    """Our extras are in setup.cfg; of another package that is here, in its own metadata."""
    for word in [word for word in shlex.split(command)[2:] if not word.startswith("-")]:
        wanted = Requirement(re.sub(r"^\.(?=\[|$)", "bt_jax", word))
        if wanted.name == "bt_jax":
            assert wanted.extras <= set(EXTRAS), command
        elif importlib.util.find_spec(wanted.name):
            assert wanted.extras <= set(importlib.metadata.metadata(wanted.name).get_all("Provides-Extra", [])), command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands(page, tmp_path, monkeypatch, capsys):
    """main.py's are run up to where their tasks begin, so that each field, method and config exists and they go together; others
    are parsed by their program. There is none that this test does not know."""
    monkeypatch.chdir(ROOT)
    for command, above in commands(page):
        first = command.split()[0]
        if "my_package" in command:
            continue  # tests/test_own_method.py makes it and runs it
        if first in LAUNCHERS:
            assert LAUNCHERS[first] in above, command
        if "python main.py" in command:
            understood(command[command.index("main.py") :].split('"')[0], monkeypatch)
        elif first == "bt_jax":
            understood(command, monkeypatch)
        elif command.startswith("pip install "):
            check_install(command)
        elif command.startswith("python -m "):
            check_module(command, monkeypatch)
        elif command.startswith("python experiments/"):
            check_script(command, monkeypatch)
        elif command.startswith("python -c "):
            with monkeypatch.context() as patch:
                run_code(shlex.split(command)[2], reader(tmp_path, patch))
        else:
            known = command.startswith(SHELL) or first in LAUNCHERS
            assert known or re.search(rf"^{first}\b", EXTRAS["lint"], re.MULTILINE), f"nothing knows {command}"


def test_kinds_of_blocks():
    """What is no command and no Python says so."""
    assert {language for page in PAGES for language, _ in BLOCK.findall(page.read_text())} == {"", "python", "text"}


@functools.cache
def trained():
    """A small encoder in the place of one that a run has left."""
    import jax

    from bt_jax.export.encoder import Encoder
    from bt_jax.export.weights import EncoderWeights

    blank = EncoderWeights("test_encoders:Patches", {}, "a test", width=4, input_size=16)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), blank.shapes())
    return Encoder(dataclasses.replace(blank, variables=variables, heads={"projector": {"params": {}}}))


def reader(folder, monkeypatch):
    """The names that pages take for granted, in a folder with a reader's images. Trainings are not made, and what it takes a
    trained encoder for gets a small one; the features of a folder are made by tests/test_library.py."""
    from bt_jax import library
    from bt_jax.export import encoder

    monkeypatch.chdir(folder)
    monkeypatch.setattr(library, "run_pretrain", lambda config, workdir: config_lib.check(config))
    monkeypatch.setattr(library, "run_task", lambda config, workdir, task: config_lib.check(config))
    embeddings = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    monkeypatch.setattr(library, "read_embeddings", lambda workdir: (embeddings, np.arange(12).astype(str)))
    monkeypatch.setattr(encoder, "load_encoder", lambda path: trained())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(load=downloaded, as_numpy=dict))
    return {
        "__name__": __name__, "bt_jax": bt_jax, "images": np.zeros((12, 16, 16, 3), np.uint8),
        "z_a": embeddings, "z_b": embeddings, "features": embeddings, "of_others": np.ones((3, 4), np.float32),
    }  # fmt: skip


def downloaded(name, *, split, batch_size):
    """What TFDS loads of CIFAR-10, with few images."""
    assert (name, batch_size) == ("cifar10", -1) and split in ("train", "test")
    return {"image": np.zeros((12, 32, 32, 3), np.uint8), "label": np.arange(12) % 10}


def run_code(code, names):
    """Runs a block in a session's names, which it adds to; of what is only defined, the names exist too."""
    tree = ast.parse(code)
    bound, used, others = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            others |= NOT_REQUIRED.intersection(packages(node))
    unknown = used - bound - names.keys() - vars(builtins).keys()
    assert not unknown, f"nothing defines {unknown}"
    if others:
        assert all(re.search(rf"# needs .*\b{name}\b", code) for name in others), f"that it needs {others} is not said"
        return
    exec(compile(tree, "a page", "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(of := named(node.value, names), types.ModuleType):
            assert hasattr(of, node.attr), ast.unparse(node)


def packages(node):
    """Those that an import is of."""
    whole = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return [name.partition(".")[0] for name in whole]


def named(node, names):
    """The module that `a.b.c` is, or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    return getattr(named(node.value, names), node.attr, None) if isinstance(node, ast.Attribute) else None


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_code(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other, as a reader runs them; only trainings are not made."""
    names = reader(tmp_path, monkeypatch)
    for block in blocks(page, "python"):
        run_code(textwrap.dedent(block), names)


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
