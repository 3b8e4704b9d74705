"""The layout as text, with rich and without."""

import io

import pytest

from liftax.layout.table import as_text

from . import samples

TREE = """\
Decoder(i32[8,128])  · examples/decoder.py:40
└── vmap × 8 'batch' over Stack  · examples/decoder.py:31
    params shared · cache stacked · keys split: dropout · not split: params
    └── scan × 12 'layers' over Block  · examples/decoder.py:8
        ↻ carry · params stacked · cache stacked · stats carried · keys split: params, dropout
        └── remat over Block  · examples/decoder.py:8
            └── vmap × 4 'experts' over Expert  · examples/decoder.py:2
                params stacked · keys split: params
"""

ROWS = """\
variable axes dtype bytes along
params 1.8 MiB
embed/embedding (vocabulary 256, features 64) float32 65,536
blocks/query/kernel (layers 12, in 64, out 64) float32 196,608 shared along batch
blocks/moe/up/kernel (layers 12, experts 4, in 64, out 256) bfloat16 1,572,864 shared along batch
cache 1.5 MiB
blocks/cached_key (layers 12, batch 8, length 128, 64) bfloat16 1,572,864
"""


def test_plain_columns():
    text = as_text(samples.decoder(), 140)
    assert text.startswith(TREE)
    squeezed = {" ".join(line.split()) for line in text.splitlines()}
    assert squeezed >= set(ROWS.splitlines())
    assert "851,968 parameters; 5 variables, 3.3 MiB in all" in text
    assert "one forward pass (cpu): 1.5 G FLOPs" in text
    assert "note LX901  An ensemble" in text


@pytest.mark.parametrize("name", ["empty", "plain", "decoder", "large", "alike", "deep"])
def test_says_every_variable(name):
    layout = getattr(samples, name)()
    text = as_text(layout, 200)
    assert text.startswith(layout.module)
    assert "\x1b" not in text
    if name == "alike":
        assert "Block_{0…999}/kernel  ×1000" in text
    else:
        assert all(v.name in text for v in layout)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["plain", "decoder", "large", "alike", "deep", "measured"])
def test_each_table_stays_a_table(name, width):
    """No line is cut or too wide, numbers stand below their titles, axes under their row."""
    layout = getattr(samples, name)()
    lines = as_text(layout, width).splitlines()
    assert max(map(len, lines)) <= width
    (head,) = [i for i, line in enumerate(lines) if line.startswith("variable ")]
    end = lines.index("", head)
    body, rule = lines[head + 2 : end], lines[head + 1]
    assert set(rule) == {"─", " "}
    right = lines[head].index("bytes") + len("bytes")
    rows = [line for line in body if line[:right].rstrip()[-1:].isdigit() and line.endswith(",")]
    assert rows == []
    below = "axes" not in lines[head]
    text = " ".join(" ".join(body).split())
    for v in layout:
        axes = ", ".join(f"{a.label} {a.size}" if a.label else f"{a.size}" for a in v.axes)
        assert f"({axes})" in text
        # One line has the name, folded in its middle at most, and the bytes.
        if name in ("plain", "decoder", "deep"):
            (row,) = [i for i, line in enumerate(body) if line[:right].endswith(f" {v.bytes:,}")
                      and line.split()[0].endswith(v.path[-1])]  # fmt: skip
            assert (axes in body[row]) or below


def test_paths_are_folded_in_their_middle():
    text = as_text(samples.decoder(), 42)
    assert "blocks/…/up/kernel" in text or "blocks/…/kernel" in text


def test_rich_has_a_colour_for_each_lift():
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=160)
    console.print(samples.decoder())
    assert "\x1b[35mlayers 12\x1b[0m" in out.getvalue()


def test_str_is_the_table():
    assert str(samples.plain()) == as_text(samples.plain())
