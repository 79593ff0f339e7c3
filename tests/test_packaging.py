"""setup.cfg and what is built by it: all packages, the configs, and the types."""

import configparser
import pathlib

from setuptools import find_packages

ROOT = pathlib.Path(__file__).parents[1]


def settings():
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    return parsed


def test_all_packages_are_in_the_wheel():
    """Those of the source, and the configs as bt_jax.recipes; nothing takes the name `configs`, `tests` or `main`."""
    options = settings()["options"]
    listed = options["packages"].split()
    assert sorted(listed) == sorted([*find_packages(str(ROOT), include=["bt_jax", "bt_jax.*"]), "bt_jax.recipes"])
    assert options["package_dir"].split() == ["bt_jax.recipes", "=", "configs"]
    assert not (ROOT / "bt_jax" / "recipes").exists(), "it would be found before configs/"


def test_types_are_said_to_be_there():
    assert settings()["options.package_data"]["bt_jax"] == "py.typed" and (ROOT / "bt_jax" / "py.typed").exists()


def test_names_of_extras_are_found_by_old_pip():
    """pip 23 does not find an extra with an underscore."""
    assert not [name for name in settings()["options.extras_require"] if "_" in name]


def test_the_workflow_runs_what_ci_runs():
    """On all Pythons that setup.cfg names."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    pythons = [
        line.split()[-1] for line in settings()["metadata"]["classifiers"].splitlines() if "Python :: 3." in line
    ]
    assert pythons and all(f'"{version}"' in workflow for version in pythons)
    assert ".ci/run" in workflow
