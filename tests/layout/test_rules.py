"""The table of rules, and their pages: each example does what its page says."""

from __future__ import annotations

import pickle
import traceback
import warnings

import jax
import pytest

import liftax as nn
from liftax import errors
from liftax.layout import RULES, rule_of

from .pages import FOLDER, blocks, execute, is_run, said

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def of(severity: str) -> list[str]:
    return [code for code, rule in RULES.items() if rule.severity == severity]


def test_each_rule_has_a_page_and_each_page_a_rule():
    assert {p.stem for p in FOLDER.glob("LX*.md")} == set(RULES)
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for code, rule in RULES.items():
        page = (FOLDER / f"{code}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {code}: {rule.title}\n")
        assert f"| [{code}]({code}.md) | {rule.severity} | {rule.title} |" in index


def test_rules_and_error_classes_belong_together():
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    coded = {c.code: c.__name__ for c in classes if "code" in vars(c) and c.code is not None}
    assert coded == {code: RULES[code].error for code in of("error")}
    for code in of("error"):
        assert rule_of(getattr(errors, RULES[code].error)).code == code


def test_the_pages_that_are_not_run_have_tests_of_their_own():
    """LX208 needs a package whose classes are flax's: `tests/adoption` makes one."""
    assert [code for code in RULES if not is_run(code)] == ["LX208"]


@pytest.mark.parametrize("code", list(filter(is_run, RULES)))
def test_message_and_fix(code):
    """The example raises, warns or finds what the page shows, in twelve lines; the fix is clean."""
    page = blocks(code)
    message = said(code)
    assert message.rstrip() == page["message"].rstrip()
    assert len(message.splitlines()) <= 12
    assert "Array(" not in message and "Traced<" not in message
    layout = execute(page["Fix"]).get("layout")
    assert layout is None or code not in {f.code for f in layout.findings}


@pytest.mark.parametrize("code", of("note"))
def test_note(code):
    """A finding carries the words of its rule."""
    (found,) = [f for f in execute(blocks(code)["Example"])["layout"].findings if f.code == code]
    severity = "warning" if code in ("LX901", "LX910") else "note"  # see the tests below
    assert (found.severity, found.title) == (severity, RULES[code].title)
    assert found.page == f"liftax explain {code}"
    assert found.lifts or found.variables  # those of `nn.check` are about variables


def test_a_stream_that_is_not_split_is_a_finding_and_a_warning():
    with pytest.warns(nn.LiftWarning, match="^LX202: .* start out identical"):
        layout = execute(blocks("LX202")["Example"])["layout"]
    (found,) = layout.findings
    assert (found.code, found.severity) == ("LX202", "warning")
    assert "all 3 slices start out identical" in found.message


def test_a_warning_is_silenced_by_its_code():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "LX202", nn.LiftWarning)
        warnings.warn(nn.LiftWarning("LX202", "not split"), stacklevel=1)
        with pytest.raises(nn.LiftWarning, match="^LX999: something else"):
            warnings.warn(nn.LiftWarning("LX999", "something else"), stacklevel=1)


def test_a_traceback_shows_the_code_and_the_page():
    error = errors.CarryError("module /, scan of Block: the message")
    shown = "".join(traceback.format_exception_only(error))
    assert shown.splitlines()[1] == "LX102: `liftax explain LX102` shows an example and the fix"
    assert str(error) == "module /, scan of Block: the message"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, again.__notes__) == (type(error), error.args, error.__notes__)
    assert not hasattr(errors.LiftaxError("no rule"), "__notes__")


def test_a_warning_is_copied_with_its_code():
    warning = nn.LiftWarning("LX202", "not split")
    again = pickle.loads(pickle.dumps(warning))
    assert (str(again), again.code) == (str(warning), "LX202")


def ensemble(**lift):
    lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "axis_size": 2, **lift}
    return nn.vmap(nn.Dense, **lift)(3)


def codes(model, *args):
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return [(f.code, f.severity) for f in nn.layout(model, rngs, *args).findings]


X = jax.ShapeDtypeStruct((2, 4), "float32")


def test_an_ensemble_over_one_input_is_a_note_without_advice():
    assert codes(ensemble(), X) == [("LX901", "warning")]
    assert codes(ensemble(in_axes=None), X) == [("LX901", "note")]
    (found,) = nn.layout(ensemble(in_axes=None), jax.random.key(0), X).findings
    assert found.message.endswith("2 independent layers, an ensemble of 30 parameters.")


def test_a_finding_is_silenced_for_one_lift():
    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dropout(0.5, deterministic=False)(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for quiet in (True, False):
                with nn.silenced(*["LX903"] * quiet):
                    drops = nn.scan(Drops, split_rngs={"dropout": False}, length=3)
                x, _ = drops()(x, None)
            return x

    assert codes(Net(), X) == [("LX903", "note")]
    with nn.silenced("LX901"), nn.silenced("LX902"):
        quiet = ensemble()  # nn.vmap remembers what it made of a class: this is another one
    assert codes(quiet, X) == []
    assert codes(ensemble(), X) == [("LX901", "warning")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with nn.silenced("LX202"):
            same = ensemble(split_rngs={"params": False})
        assert codes(same, X) == [("LX901", "warning")]
    with pytest.raises(ValueError, match="no finding has the code 'LX101'; there are LX202"):
        with nn.silenced("LX101"):
            pass
