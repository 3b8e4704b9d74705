"""The practice in a browser: one local page, with the editor, the verdict and both layouts.

NiceGUI makes the page; what stands here is the arrangement. Files, progress and verdicts
are those of the terminal, and a check runs in a process of its own here as there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from .exercises import Exercise, exercises
from .guard import Guard
from .places import Place
from .running import Limits, Runner, WorkerError
from .shown import as_html, style

PAGE_STYLE = """
.nicegui-content { padding: 16px; max-width: 1600px; margin: 0 auto; }
.practice-cols { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 24px;
  width: 100%; align-items: start; }
.practice-cols > div { min-width: 0; display: grid; gap: 12px;
  grid-template-columns: minmax(0, 1fr); }
@media (max-width: 1250px) { .practice-cols { grid-template-columns: minmax(0, 1fr); } }
.practice-page { min-width: 0; overflow-wrap: anywhere; }
.practice-page h1 { font-size: 26px; font-weight: 600; margin: 0 0 8px; }
.practice-page h2 { font-size: 18px; font-weight: 600; margin: 18px 0 6px; }
.practice-page pre { overflow-x: auto; }
.practice-editor { width: 100%; height: 26rem; border: 1px solid #8884; border-radius: 10px; }
"""


def serve(place: Place, limits: Limits, port: int, say: Callable[[str], None]) -> int:
    """Serves the page until Ctrl-C; ``say`` is told the address."""
    from nicegui import app, ui

    token = secrets.token_urlsafe(24)
    with Runner(limits) as runner:
        app.add_middleware(Guard, token=token, port=port)

        @ui.page("/", title="liftax practice")  # type: ignore[untyped-decorator]
        def page() -> None:
            Page(ui, place, runner).draw()

        # After the server has come up: an address that is told can be opened.
        app.on_startup(lambda: say(f"The practice is at http://127.0.0.1:{port}/?token={token}"))
        ui.run(
            host="127.0.0.1",
            port=port,
            reload=False,
            show=False,
            show_welcome_message=False,
            dark=None,
            favicon="↻",
        )
    return 0


class Redrawn:
    """A part of the page that is drawn again when what it shows has changed."""

    def __init__(self, ui: Any, draw: Callable[[], None]) -> None:
        self.box, self.draw = ui.element("div").classes("w-full"), draw
        self.again()

    def again(self) -> None:
        """Draws it anew."""
        self.box.clear()
        with self.box:
            self.draw()


class Page:
    """One open page; `ui` is NiceGUI's, which only the extra installs."""

    def __init__(self, ui: Any, place: Place, runner: Runner) -> None:
        self.ui, self.place, self.runner = ui, place, runner
        self.exercise = place.current()
        self.verdict = ""
        self.hints = 0  # shown on this page, from the first
        self.checking = False

    def draw(self) -> None:
        """Draws all of it."""
        ui = self.ui
        ui.add_head_html(f"<style>{style()}{PAGE_STYLE}</style>")
        drawer = ui.left_drawer()
        with ui.header().classes("items-center"):
            ui.button(icon="menu", on_click=drawer.toggle).props(
                'flat color=white aria-label="List of exercises"'
            )
            ui.label("liftax practice").classes("text-lg")
        with drawer:
            self.list = Redrawn(ui, self.draw_list)
        self.body = Redrawn(ui, self.draw_body)
        # What is typed is kept, also when the page is closed before a check.
        ui.timer(1.0, self.save)

    def draw_list(self) -> None:
        """The exercises, and how many are solved."""
        ui, solved = self.ui, self.place.progress.solved
        count = len({each.name for each in exercises()} & set(solved))
        ui.label(f"{count} of {len(exercises())} solved").props('role="status"')
        ui.linear_progress(count / len(exercises()), show_value=False)
        for each in exercises():
            mark = "✓" if each.name in solved else "→" if each == self.exercise else "\u2007"
            ui.button(
                f"{mark} {each.number} {each.name}", on_click=lambda each=each: self.open(each)
            ).props("flat no-caps dense align=left").classes("w-full")

    def draw_body(self) -> None:
        """The page of the exercise, and beside it what it asks for."""
        ui = self.ui
        self.runner.warm(self.exercise)  # it gets ready while the page is read
        with ui.element("div").classes("practice-cols"):
            with ui.element("div"):
                ui.markdown(self.exercise.page).classes("practice-page")
            with ui.element("div"):
                self.draw_workplace()

    def draw_workplace(self) -> None:
        """The editor, the buttons, the verdict, the hints."""
        ui, source = self.ui, self.place.read(self.exercise)
        self.editor = ui.codemirror(source, language="Python", indent="    ", theme="basicLight")
        self.editor.classes("practice-editor")
        self.saved = source
        with ui.row():
            ui.button("Check", on_click=self.check).props("no-caps")
            for name, does in (
                ("Hint", self.hint),
                ("Solution", self.solution),
                ("Reset", self.reset),
                ("Next", self.next),
            ):
                ui.button(name, on_click=does).props("no-caps outline")
        self.result = Redrawn(ui, self.draw_result)
        self.help = Redrawn(ui, self.draw_help)

    def draw_result(self) -> None:
        """The verdict."""
        if self.checking:
            self.ui.spinner()
        elif self.verdict:
            # Made by `as_html`, which escapes whatever comes from the learner.
            box = self.ui.html(self.verdict, sanitize=False)
            box.classes("w-full").props('role="status"')

    def draw_help(self) -> None:
        """The hints that have been asked for."""
        ui = self.ui
        for i, hint in enumerate(self.exercise.hints[: self.hints], 1):
            with ui.card().classes("w-full"):
                ui.label(f"Hint {i} of {len(self.exercise.hints)}").classes("text-bold")
                ui.markdown(hint).classes("practice-page")

    # --- what the buttons do --------------------------------------------------

    def open(self, exercise: Exercise) -> None:
        """Goes to an exercise; what was typed is kept."""
        self.save()
        self.exercise, self.verdict, self.hints = exercise, "", 0
        self.place.go_to(exercise)
        self.list.again()
        self.body.again()

    def save(self) -> None:
        """Writes what has been typed into the learner's file."""
        text = self.editor.value or ""
        # Another program may have the file open: only what was typed here is written.
        if text != self.saved:
            self.place.write(self.exercise, text)
            self.saved = text

    async def check(self) -> None:
        """Grades what stands in the editor."""
        from nicegui import run

        if self.checking:
            return
        self.save()
        exercise, source = self.exercise, self.editor.value or ""
        self.checking = True
        self.result.again()
        try:
            path = self.place.path(exercise)
            verdict = await run.io_bound(self.runner.check, exercise, source, path)
            if verdict.passed:
                self.place.solve(exercise)
            drawn = as_html(verdict)
        except WorkerError as error:
            self.ui.notify(str(error), type="negative", multi_line=True)
            drawn = ""
        finally:
            self.checking = False
        if exercise == self.exercise:  # and not gone to another one meanwhile
            self.verdict = drawn
        self.result.again()
        self.list.again()
        self.tell()

    def hint(self) -> None:
        """Shows one more hint."""
        self.hints = min(self.hints + 1, len(self.exercise.hints))
        if self.place.progress.hints.get(self.exercise.name, 0) < self.hints:
            self.place.take_hint(self.exercise)
        self.help.again()

    def solution(self) -> None:
        """Shows all hints, the last of which is the solution, to those who may see it."""
        if not self.place.may_see_solution(self.exercise):
            self.ui.notify("The solution is shown when you have passed, or read all hints.")
            return
        self.hints = len(self.exercise.hints)
        self.help.again()

    def reset(self) -> None:
        """Puts the file back as shipped."""
        self.save()
        kept = self.place.reset(self.exercise)
        self.verdict = ""
        # Before the button that was pressed is gone: the message comes from its place.
        self.ui.notify(f"As it was shipped; yours is kept as {kept.name}" if kept else "As shipped")
        self.body.again()

    def next(self) -> None:
        """Goes to the next exercise that is not solved."""
        solved = self.place.progress.solved
        others = [*exercises()[self.exercise.number :], *exercises()[: self.exercise.number]]
        left = [each for each in others if each.name not in solved]
        if left:
            self.open(left[0])
        else:
            self.ui.notify(f"All {len(exercises())} exercises are solved.")

    def tell(self) -> None:
        """Says what the place has to say: a file that was set aside."""
        while self.place.said:
            self.ui.notify(self.place.said.pop(0), type="warning", multi_line=True)
