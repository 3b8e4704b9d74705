"""An instruction to install names what exists: a name, an address or a checkout."""

import importlib.metadata
import json

import pytest

from liftax import installed


class Distribution:
    def __init__(self, told):
        self.told = told

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.told


def told(monkeypatch, told):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(told))
    return installed.how_to_install("train")


def test_by_name(monkeypatch):
    assert told(monkeypatch, None) == "pip install 'liftax[train]'"
    assert told(monkeypatch, "{") == "pip install 'liftax[train]'"


@pytest.mark.parametrize("editable", [False, True])
def test_from_a_checkout(monkeypatch, tmp_path, editable):
    folder = tmp_path / "a checkout"
    folder.mkdir()
    text = json.dumps({"url": folder.as_uri(), "dir_info": {"editable": editable}})
    assert told(monkeypatch, text) == "pip install 'liftax[train]'"  # it is there no more
    (folder / "pyproject.toml").touch()
    assert told(monkeypatch, text) == f"pip install {'-e ' * editable}'{folder}[train]'"


def test_from_an_address(monkeypatch):
    url = "https://example.org/liftax"
    text = json.dumps({"url": url, "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert told(monkeypatch, text) == f"pip install 'liftax[train] @ git+{url}'"
    text = json.dumps({"url": url + ".whl", "archive_info": {}})
    assert told(monkeypatch, text) == f"pip install 'liftax[train] @ {url}.whl'"


def test_run_from_its_source(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    said = installed.how_to_install("train")
    assert said.startswith("pip install ") and "[train]" in said
