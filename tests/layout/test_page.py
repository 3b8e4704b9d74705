"""The page, in a browser: it comes up without errors, and says and does what it should."""

import re

import jax
import pytest

import liftax as nn
from liftax.layout.fold import alike_lifts, fold

from . import samples
from .browser import CHROMIUM, ask
from .models import models

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

LOOK = """(doc, win) => ({
  title: doc.title,
  rows: doc.querySelectorAll("li.row").length,
  boxes: doc.querySelectorAll(".box.lift").length,
  loops: doc.querySelectorAll(".loop").length,
  wide: doc.documentElement.scrollWidth > doc.documentElement.clientWidth,
  paper: win.getComputedStyle(doc.body).backgroundColor,
  nameless: [...doc.querySelectorAll("button, input, [role=group], [role=img], [role=region]")]
    .filter((e) => !e.getAttribute("aria-label")).length,
  fetched: win.performance.getEntriesByType("resource").length,
})"""

DO = """(doc, win) => {
  const key = (name) => doc.activeElement.dispatchEvent(
    new win.KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  const panel = doc.querySelector(".inspect");
  const rows = [...doc.querySelectorAll(".row")];
  const said = {};
  rows[0].focus();
  said.tabbable = rows.filter((row) => row.tabIndex === 0).length;
  said.first = panel.querySelector("h3").textContent;
  key("ArrowDown");
  said.second = panel.querySelector("h3").textContent;
  key("End");
  said.last = panel.querySelector("h3").textContent;
  said.text = panel.textContent;
  key("/");
  said.filtering = doc.activeElement.type;
  const filter = doc.activeElement;
  filter.value = "experts bfloat16";
  filter.dispatchEvent(new win.Event("input", { bubbles: true }));
  said.left = doc.querySelectorAll("li.row:not(.hidden)").length;
  said.count = doc.querySelector(".count").textContent;
  filter.value = "";
  filter.dispatchEvent(new win.Event("input", { bubbles: true }));
  said.all = doc.querySelectorAll("li.row:not(.hidden)").length;
  const box = doc.querySelectorAll(".box.lift")[1];
  box.focus();
  said.lift = panel.querySelector("h3").textContent;
  said.hot = doc.querySelector(".lx").dataset.hot;
  said.dim = win.getComputedStyle(doc.querySelector("#v0")).opacity;
  said.bright = win.getComputedStyle(doc.querySelector("#v1")).opacity;
  const hover = doc.querySelector("#v3");
  hover.dispatchEvent(new win.PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
  said.hover = panel.querySelector("h3").textContent;
  return said;
}"""

STAGES = """(doc, win) => [...doc.querySelectorAll("figure.pipe")].map((figure) => {
  const boxes = (css) => [...figure.querySelectorAll(css)].map((e) => {
    const at = e.getBoundingClientRect();
    return { x: at.x, y: at.y, right: at.right, said: e.querySelector("title").textContent };
  });
  const of = (e, name) => win.getComputedStyle(e)[name];
  return {
    caption: figure.querySelector("figcaption").textContent,
    facts: [...figure.querySelectorAll(".tile")].map((e) => e.textContent),
    picture: figure.querySelector("svg").getAttribute("aria-label"),
    rows: [...figure.querySelectorAll("text.end")].map((e) => e.textContent),
    runs: boxes("rect.run"), idle: boxes("rect.idle"),
    tones: [...new Set([...figure.querySelectorAll("rect.run")].map((e) => of(e, "fill")))],
    hollow: [...figure.querySelectorAll("rect.idle")].every((e) => of(e, "fill") === "none"),
    numbers: [...figure.querySelectorAll("text.of")].map((e) => e.textContent),
    keys: figure.querySelector(".keys").textContent,
    bytes: figure.outerHTML.length,
  };
})"""

NAMES = ["empty", "plain", "decoder", "piped", "large", "alike", "deep", "measured", "many_blocks"]


def rows_of(layout):
    """The rows that a page has: of more than a hundred arrays alike, one."""
    folds = fold(layout.variables, 4, alike_lifts(layout).same)
    return sum(1 if len(group) > 100 else len(group) for group in folds)


@pytest.fixture(scope="module")
def layouts():
    """Those made by hand, and those of ten models, the largest with 2,000 variables."""
    key = jax.random.key(0)
    made = {f"sample {name}": getattr(samples, name)() for name in NAMES}
    real = {name: nn.layout(model, key, *args) for name, (model, *args) in models().items()}
    assert len(real) == 10 and max(map(len, real.values())) == 2000
    return {**made, **real}


@pytest.fixture(scope="module")
def pages(layouts):
    return {name: layout.to_html() for name, layout in layouts.items()}


@pytest.mark.parametrize("width", [1280, 360])
def test_comes_up_without_errors(layouts, pages, width):
    seen, console = ask(list(pages.values()), LOOK, width=width, dark=width == 360)
    assert console == []
    for (name, layout), page in zip(layouts.items(), seen, strict=True):
        assert page["title"] == f"{layout.module} · layout"
        assert page["rows"] == rows_of(layout)
        same = alike_lifts(layout).same
        drawn = [lift for lift in layout.lifts if same[lift.index] == lift.index]
        assert page["boxes"] == len(drawn)
        assert page["loops"] == sum(lift.carry for lift in drawn)
        assert page["nameless"] == page["fetched"] == 0
        assert not page["wide"], f"{name} is wider than {width} pixels"
        assert page["paper"] == ("rgb(19, 20, 23)" if width == 360 else "rgb(251, 250, 248)")


def test_keyboard_filter_and_hover(pages):
    (said,), console = ask([pages["sample decoder"]], DO)
    assert console == []
    assert said["tabbable"] == 1
    assert said["first"] == "params/embed/embedding"
    assert said["second"] == "params/blocks/query/kernel"
    assert said["last"] == "stats/blocks/mean"
    assert "handed from one iteration to the next" in said["text"]
    assert said["filtering"] == "search"
    assert (said["left"], said["count"], said["all"]) == (1, "1 of 5", 5)
    assert (said["lift"], said["hot"]) == ("scan × 12 over Block", "1")
    assert (said["dim"], said["bright"]) == ("0.35", "1")
    assert said["hover"] == "cache/blocks/cached_key"


def test_stages_are_drawn_along_their_steps(pages):
    """Each stage begins two steps after the one before; what is left over is the bubble."""
    ((deep, wide),), console = ask([pages["sample piped"]], STAGES)
    assert console == []
    assert deep["caption"] == (
        "/deep, stack × 16 over Block: 4 stages × 2 repeats along the mesh axis 'stage', each 2 "
        "steps after the one before"
    )
    assert deep["facts"] == [
        "22steps", "27%bubble: 6 of 22 steps", "8microbatches",
        "96 Bcross from each stage in a step",
    ]  # fmt: skip
    assert deep["rows"] == ["stage 0", "stage 1", "stage 2", "stage 3", "step"]
    assert "stage s works from step 2 × s on, for 16 steps" in deep["picture"]
    runs = deep["runs"]
    step = (runs[2]["x"] - runs[0]["x"]) / 2
    assert [round((box["x"] - runs[0]["x"]) / step) for box in runs] == [0, 8, 2, 10, 4, 12, 6, 14]
    assert [round((box["right"] - box["x"]) / step) for box in runs] == [8] * 8
    # Without a gap but for the bubble, three rows of which begin and three end with one.
    idle = [round((box["right"] - box["x"]) / step) for box in deep["idle"]]
    assert (idle, deep["hollow"], len(deep["tones"])) == ([6, 2, 4, 4, 2, 6], True, 2)
    assert runs[3]["said"] == "stage 1, repeats of the pattern 10-11: steps 10 to 17"
    assert deep["numbers"] == [*"01234567"] * 8
    assert "0 0-1 8-9 · 1 2-3 10-11" in deep["keys"]
    # Of many stages the first ones and the last, and no number for each of thousands of steps.
    assert (len(wide["rows"]), wide["rows"][-2], wide["numbers"]) == (25, "… stage 39", [])
    assert "<axis>" in wide["caption"] and wide["bytes"] < 40_000


def test_names_are_escaped():
    layout = samples.plain()
    wild = samples.variable("<script>alert(1)</script>/\"w'", [], layer="<b>")
    text = layout.replace(variables=(wild,), module="<i>M</i>").to_html()
    assert "<script>alert" not in text and "<i>M" not in text and "<b><" not in text


def test_page_needs_nothing_from_outside(pages):
    for text in pages.values():
        assert not re.search(r"""(src|href)=["'](?!#|data:,)""", text)
        assert "url(" not in text and "@import" not in text


def test_written_whole_or_not_at_all(tmp_path, pages):
    file = tmp_path / "page.html"
    assert (
        samples.plain().to_html(file) == file.read_text(encoding="utf-8") == pages["sample plain"]
    )
    with pytest.raises(FileNotFoundError):
        samples.plain().to_html(tmp_path / "nowhere" / "page.html")
    assert [f.name for f in tmp_path.iterdir()] == ["page.html"]


def test_notebook_cell_is_bounded_and_has_no_script():
    cell = samples.large()._repr_html_()
    assert "<script" not in cell and cell.count('<li class="row') == 200
    assert "More in the page" in cell
    assert len(cell) < 300_000
    assert "LX901" in samples.decoder()._repr_html_()
    assert "<figure" in samples.piped()._repr_html_()


def test_a_thousand_hand_written_layers_fold():
    layout = samples.many_blocks()
    assert (len(layout), len(layout.lifts)) == (6000, 1000)
    page, text = layout.to_html(), str(layout)
    assert len(page) < 100_000 and len(text.splitlines()) < 60
    assert "1,000 alike: Block_{0…999}" in page
    assert "×1,000: Block_{0…999}" in text
    assert len(samples.large(1000).to_html()) < 1_000_000  # no two are alike


LOOKS = """(doc, win) => {
  const of = (e, name) => win.getComputedStyle(e)[name];
  const print = [...doc.styleSheets].flatMap((sheet) => [...sheet.cssRules])
    .filter((rule) => rule.media && rule.media.mediaText === "print")
    .flatMap((rule) => [...rule.cssRules]).map((rule) => rule.cssText).join(" ");
  return {
    lifted: [...doc.querySelectorAll(".ax.hue:not(.no)")].map((e) => of(e, "boxShadow")),
    own: [...doc.querySelectorAll(".ax:not(.hue)")].map((e) => of(e, "boxShadow")),
    unseen: [...doc.querySelectorAll("li.row")].filter(
      (e) => of(e, "contentVisibility") !== "visible" || e.offsetHeight < 20).length,
    print,
  };
}"""


def test_on_paper_in_grey_and_in_one_picture():
    """Colours are printed, boxes are not broken, all rows are drawn, lifts' axes have an edge."""
    pages = [samples.decoder().to_html(), samples.large(300).to_html()]
    for looks in ask(pages, LOOKS)[0]:
        assert looks["unseen"] == 0
        assert looks["lifted"] and all("inset" in shadow for shadow in looks["lifted"])
        assert looks["own"] and set(looks["own"]) == {"none"}
        assert "print-color-adjust: exact" in looks["print"]
        assert "break-inside: avoid" in looks["print"]
