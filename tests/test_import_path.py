"""bt_jax/import_path.py: what a path names, and an error if it names nothing."""

import pytest

from bt_jax import UserError
from bt_jax.import_path import import_object, is_import_path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `own_things` with modules that import and that do not."""
    folder = tmp_path / "own_things"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text("Encoder = 3\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "lacking.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_what_a_path_names(package):
    assert import_object("own_things.nets:Encoder", "model.arch") == 3
    assert is_import_path("own_things.nets:Encoder") and not is_import_path("resnet18")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (":Encoder", "model.arch is ':Encoder', but must be an import path of the form 'package.module:Name'"),
        ("own_things.nets:", "must be an import path"),
        ("own things:Encoder", "must be an import path"),
        (
            "own_thing.nets:Encoder",
            "there is no module 'own_thing'; install its package, or add its folder to PYTHONPATH",
        ),
        ("own_things.net:Encoder", "there is no module 'own_things.net'"),
        ("own_things.nets:Encoders", r"own_things.nets has no 'Encoders' \(did you mean 'Encoder'\?\)"),
        ("own_things.broken:Encoder", r"own_things.broken cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("own_things.lacking:Encoder", r"cannot be imported \(No module named 'package_that_nobody_has'\)"),
    ],
)
def test_what_cannot_be_imported(package, path, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        import_object(path, "model.arch")
    assert len(str(caught.value).splitlines()) == 1
