"""Imports swapped in source: what changes, what stays, what is said."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from liftax.adopt.rewriting import rewritten
from liftax.cli import main

# (what it is, before, after)
REWRITES = [
    ("an alias", "import flax.linen as nn", "import liftax as nn"),
    ("spaces and comments", "import  flax.linen  as nn  # layers", "import liftax as nn  # layers"),
    (
        "two at once",
        "from flax import linen as nn, struct",
        "import liftax as nn\nfrom flax import struct",
    ),
    ("under its own name", "from flax import linen", "import liftax as linen"),
    (
        "only the module's name changes",
        "from flax.linen import (\n    Dense,  # one\n    compact as c,\n)",
        "from liftax import (\n    Dense,  # one\n    compact as c,\n)",
    ),
    (
        "submodules",
        "from flax.linen.initializers import constant, orthogonal\nimport flax.linen.linear as l",
        "from liftax.initializers import constant, orthogonal\nimport liftax.linear as l",
    ),
    (
        "a name that lives elsewhere here",
        "from flax.core.scope import CollectionFilter, Scope",
        "from liftax.core import CollectionFilter\nfrom liftax.core.scope import Scope",
    ),
    ("star", "from flax.linen import *", "from liftax import *"),
    ("marks", "from flax.core.lift import In, Out", "from liftax.core.lift import In, Out"),
    ("a part of core", "from flax.core import meta, lift", "from liftax.core import meta, lift"),
    (
        "dicts stay flax's",
        "from flax.core import FrozenDict, meta",
        "from liftax.core import meta\nfrom flax.core import FrozenDict",
    ),
    (
        "full names",
        "import flax\n\nx = flax.linen.Dense(2)\n@flax.struct.dataclass\nclass A: pass",
        "import flax\nimport liftax\n\nx = liftax.Dense(2)\n@flax.struct.dataclass\nclass A: pass",
    ),
    (
        "full names, and flax no more",
        "import flax.linen\ninit = flax.linen.initializers.zeros",
        "import liftax.initializers\ninit = liftax.initializers.zeros",
    ),
    (
        "twice, once is enough",
        "import flax\nimport flax.linen\nprint(flax.linen.Dense, flax.linen.Module)",
        "import liftax\nprint(liftax.Dense, liftax.Module)",
    ),
    (
        "in functions and conditions",
        "def f():\n    import flax.linen as nn\n    if nn: from flax import linen as l, io\n",
        "def f():\n    import liftax as nn\n    if nn: import liftax as l; from flax import io\n",
    ),
    (
        "in a function, by its full name",
        "def f():\n    import flax\n    return flax.linen.Dense, flax.io\n",
        "def f():\n    import flax\n    import liftax\n    return liftax.Dense, flax.io\n",
    ),
    (
        "annotations that are text",
        "import flax\ndef f(m: 'flax.linen.Module') -> \"list[flax.linen.Dense]\": ...",
        "import liftax\ndef f(m: 'liftax.Module') -> \"list[liftax.Dense]\": ...",
    ),
    ("letters of any kind", "é = 1; import flax.linen as nn", "é = 1; import liftax as nn"),
    ("errors", "from flax import errors", "from liftax import errors"),
]


@pytest.mark.parametrize(
    ("before", "after"), [r[1:] for r in REWRITES], ids=[r[0] for r in REWRITES]
)
def test_rewrites(before: str, after: str) -> None:
    result = rewritten(before)
    assert result.text == after
    assert not result.to_person
    again = rewritten(after)
    assert again.text == after and not again.to_person


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from flax.linen import LayerNom", "did you mean 'LayerNorm'"),
        ("import flax.linen as nn\nx = nn.FrozenDict", "plain dicts"),
        ("from flax import linen as nn\nnn.transforms.clean_clone", "apply and bind"),
        ("import flax\nx = flax.linen.Fp8Einsum", "dot_general"),
        ("from flax import (linen,  # layers\n  struct)", "comments inside this import"),
    ],
)
def test_what_needs_a_person_is_said(source: str, said: str) -> None:
    (note,) = rewritten(source).to_person
    assert said in note.text and note.line == source.count("\n") + (1 if "(" not in source else 0)


def test_what_stays_flaxs_is_said() -> None:
    source = "import flax\nfrom flax.training import train_state\nflax.jax_utils.replicate"
    result = rewritten(source)
    assert result.text == source
    assert [(n.line, n.text) for n in result.to_flax] == [
        (2, "flax.training"),
        (3, "flax.jax_utils"),
    ]
    assert rewritten("import optax").to_flax == []


def git(folder: Path, *args: str) -> None:
    subprocess.run(["git", "-C", str(folder), *args], check=True, capture_output=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tmp_path / "pkg" / "model.py"
    module.parent.mkdir()
    module.write_text("import flax.linen as nn\nfrom flax import struct\n")
    (tmp_path / "pkg" / "other.py").write_text("import jax\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "old.py").write_text("import flax.linen as nn\n")
    notebook = tmp_path / "book.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["import flax.linen as nn"]},
        {
            "cell_type": "code",
            "source": ["!pip install flax\n", "import flax.linen as nn\n", "nn?"],
        },
        {"cell_type": "code", "source": "%%bash\nfor f in *; do echo; done"},
        {"cell_type": "code", "source": ["await nn.Dense(nn.FrozenDict)"]},
    ]
    notebook.write_text(json.dumps({"cells": cells, "nbformat": 4}, indent=1) + "\n")
    bad = tmp_path / "bad.py"
    bad.write_text("print 'flax'\n")
    before = module.read_text(), notebook.read_text()

    assert main(["migrate", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "-import flax.linen as nn" in said and "+import liftax as nn" in said
    assert "bad.py:1: needs a person: cannot be read: SyntaxError" in said
    assert "code cell 3: module 'liftax' has no attribute 'FrozenDict'" in said
    assert "model.py:2: stays flax's: flax.struct" in said
    assert "4 files read, 2 to change, 2 lines need a person" in said
    assert (module.read_text(), notebook.read_text()) == before

    assert main(["migrate", "--check", str(module)]) == 1
    git(tmp_path, "init", "-q")
    assert main(["migrate", "--write", str(tmp_path)]) == 2  # nothing is committed
    assert "not committed" in capsys.readouterr().err
    assert main(["migrate", "--write", "--dirty", str(tmp_path)]) == 0
    assert module.read_text() == "import liftax as nn\nfrom flax import struct\n"
    new = json.loads(notebook.read_text())["cells"]
    assert new[1]["source"] == ["!pip install flax\n", "import liftax as nn\n", "nn?"]
    assert [new[i] for i in (0, 2, 3)] == [cells[i] for i in (0, 2, 3)]
    assert main(["migrate", "--check", str(module)]) == 0
    assert main(["migrate", str(tmp_path / "absent")]) == 2
    assert main(["migrate", "--check", "--write", str(module)]) == 2
