"""`liftax layout`: on importable modules and files, and every way to get it wrong."""

from __future__ import annotations

import json
import re
import sys
import threading

import jax.numpy as jnp
import pytest

from liftax.cli import main
from liftax.cli._console import CommandError
from liftax.cli.layout import parse_args, parse_field
from liftax.layout import progress

MODEL = """
import liftax as nn

class Net(nn.Module):
    features: int = 3
    act: str = 'relu'

    @nn.compact
    def __call__(self, x, train=True):
        return getattr(nn, self.act)(nn.Dense(self.features)(x))

class Needs(nn.Module):
    width: int

    def __call__(self, x):
        return x

def make():
    return Net(5)

net = Net(7)
class Drops(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x)), None

drops = nn.scan(
    Drops, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': False}, length=3)()

number = 3
class Plain: pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "netfile.py").write_text(MODEL)
    (tmp_path / "netfile.json").write_text("[]")
    (tmp_path / "broken.py").write_text("raise RuntimeError('on import')\n")
    (tmp_path / "wants.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("netfile", "broken", "wants"):
        sys.modules.pop(name, None)


def run(capsys, *argv):
    code = main(["layout", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_table(folder, capsys):
    code, out, err = run(capsys, "netfile:Net", "--args", "f32[8,64]")
    assert (code, err) == (0, "")
    assert "Net(f32[8,64])  · netfile.py:4" in out
    assert re.search(r"Dense_0/kernel +\(in 64, out 3\) +float32 +768", out)
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("target", "width"), [("netfile:make", 5), ("netfile:net", 7), ("netfile.py:Net", 3)]
)
def test_targets(folder, capsys, target, width):
    code, out, _ = run(capsys, target, "--args", "f32[2,4], train=False", "--json")
    assert code == 0
    rows = json.loads(out)["variables"]
    assert {tuple(row["shape"]) for row in rows} == {(4, width), (width,)}


def test_fields_html_and_cost(folder, capsys):
    code, out, _ = run(
        capsys, "netfile:Net", "--args", "f32[2,4]", "--field", "features=9", "--field", "act=tanh",
        "--html", "page.html", "--cost",
    )  # fmt: skip
    assert code == 0
    assert out.splitlines()[-1] == "written to page.html"
    page = (folder / "page.html").read_text()
    assert "FLOPs forward" in page and 'aria-label="in 4, out 9"' in page


WRONG = {
    "no colon": (["netfile"], "expected package.module:Model"),
    "no module": (["nowhere:Net"], "there is no module 'nowhere'"),
    "no file": (["nowhere.py:Net"], "'nowhere.py': no such file"),
    "no name": (["netfile:Nets"], "netfile has no 'Nets'; did you mean 'Net'?"),
    "import fails": (["broken:Net"], "importing broken failed: RuntimeError: on import"),
    "file fails": (["broken.py:Net"], "importing broken.py failed: RuntimeError: on import"),
    "dependency": (["wants:Net"], "No module named 'nothing_of_this_name'"),
    "not a module": (["netfile:number"], "is an int, expected a liftax Module"),
    "other class": (["netfile:Plain"], "is the class 'Plain', expected a liftax Module"),
    "missing field": (["netfile:Needs"], "give fields as --field name=value"),
    "unknown field": (["netfile:Net", "--field", "feature=3"], "its fields: features, act"),
    "field": (["netfile:Net", "--field", "features"], "expected name=value"),
    "field of instance": (["netfile:net", "--field", "features=3"], "is an instance already"),
    "no arguments": (["netfile:Net"], "Net(): TypeError: "),
    "bad shape": (["netfile:Net", "--args", "f32[8,-1]"], "made of whole numbers"),
    "bad dtype": (["netfile:Net", "--args", "f31[8]"], "there is no dtype 'f31'"),
    "unreadable": (["netfile:Net", "--args", "f32[8"], "cannot be read"),
    "a bare name": (["netfile:Net", "--args", "x"], "neither an array"),
    "too many": (["netfile:Net", "--args", "f32[2],1,2,3"], "TypeError"),
    "no directory": (["netfile:Net", "--args", "f32[2]", "--html", "a/b.html"], "no directory 'a'"),
    "no such finding": (
        ["netfile:Net", "--fail-on", "LX9O4"],
        "has that code; did you mean 'LX904'",
    ),
    "no stream": (["netfile:Net", "--rngs", "a b"], "expected names of streams"),
    "values of a model": (["netfile:Net", "--values"], "a model has no numbers yet"),
    "cost of a file": (["netfile.json", "--cost"], "a checkpoint has no forward pass"),
    "no checkpoint": (["netfile.json"], "a checkpoint is a safetensors file"),
    "is a directory": (["netfile:Net", "--args", "f32[2]", "--html", "."], "--html ."),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_line_and_code_2(folder, capsys, case):
    argv, words = WRONG[case]
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("liftax layout: ") and err.count("\n") == 1
    assert words in err


SAME = ["netfile:drops", "--args", "f32[2,4], None"]


def test_a_stream_that_is_not_split(folder, capsys):
    code, out, err = run(capsys, *SAME, "--rngs", "params,dropout", "--fail-on", "LX903")
    assert code == 1 and "note LX903" in out
    assert err == "liftax layout: found 1 of LX903 (--fail-on)\n"
    assert run(capsys, *SAME, "--rngs", "params, dropout", "--fail-on", "warning")[0] == 0
    code, out, _ = run(capsys, *SAME, "--fail-on", "note")
    assert code == 0 and "stream not given, so 'params' stood in: dropout" in out


def test_a_checkpoint_says_its_own(folder, capsys):
    import jax

    import liftax as nn

    stack = nn.Stack(nn.Dense(4), depth=3)
    x = jnp.ones((2, 4))
    variables = stack.init(jax.random.key(0), x)
    nn.save_checkpoint("a.safetensors", variables, layout=stack)
    code, out, _ = run(capsys, "a.safetensors")
    assert code == 0 and out.startswith("a.safetensors\n└── stack × 3 over block_0")
    assert "block_0/kernel  (stack 3, 4, 4)  float32" in out
    code, out, _ = run(capsys, "a.safetensors", "--values")
    assert re.search(r"block_0/bias +0 +0 +0 +0 +100 %\n +stack 0 +0 ", out)
    (folder / "deep.py").write_text("import liftax as nn\nstack = nn.Stack(nn.Dense(4), depth=3)\n")
    model = ["deep.py:stack", "--args", "f32[2,4]"]
    assert run(capsys, *model, "--diff", "a.safetensors")[:2] == (
        0, "no difference: 2 variables alike\n")  # fmt: skip
    code, out, _ = run(capsys, "netfile:Net", "--args", "f32[2,4]", "--diff", "a.safetensors")
    assert code == 1 and "/Dense_0 is called block_0 in a.safetensors" in out
    sys.modules.pop("deep", None)


def test_what_takes_long_says_so(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    seen = threading.Event()

    def how_far():
        seen.set()
        return "3 modules"

    with progress.said("tracing Net", how_far):
        pass  # a function says nothing where stderr is no terminal
    token = progress.always.set(True)
    try:
        with progress.said("tracing Net", how_far):
            assert seen.wait(30)
    finally:
        progress.always.reset(token)
    assert "liftax: tracing Net, 3 modules, 0 s\n" in capsys.readouterr().err


def test_a_failure_leaves_an_existing_page_alone(folder, capsys):
    (folder / "page.html").write_text("old")
    assert run(capsys, "netfile:Net", "--args", "f31[2]", "--html", "page.html")[0] == 2
    assert (folder / "page.html").read_text() == "old"


def test_arguments():
    args, kwargs = parse_args("(f32[8,5], bf16[]), {'a': [i32[2], None]}, 1.5, train=False")
    (first, second), tree, number = args
    assert (first.shape, first.dtype) == ((8, 5), jnp.float32)
    assert (second.shape, second.dtype) == ((), jnp.bfloat16)
    assert tree["a"][0].dtype == jnp.int32 and tree["a"][1] is None
    assert (number, kwargs) == (1.5, {"train": False})
    assert parse_args("") == ([], {})
    with pytest.raises(CommandError, match="not understood"):
        parse_args("**x")


def test_fields():
    assert parse_field("features=(3, 4)") == ("features", (3, 4))
    assert parse_field("act=relu") == ("act", "relu")
