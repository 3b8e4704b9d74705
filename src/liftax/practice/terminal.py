"""The practice at a terminal: a page, a watched file, a verdict for each save, a few keys."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from .exercises import Exercise, exercises
from .places import Place
from .running import Limits, Runner
from .verdict import Verdict

KEYS = "h hint · l list · n next · r reset · s solution · p page · q quit"


class Printer(Protocol):
    """What prints: the console of the command `liftax`."""

    @property
    def fancy(self) -> bool:
        """Whether it is a terminal with rich."""

    def line(self, text: str = "") -> None:
        """Prints a line as it is."""

    def rich(self, renderable: object) -> None:
        """Prints an object of rich's."""


def as_rich(verdict: Verdict) -> Any:
    """The verdict as something that a rich console prints."""
    from rich.panel import Panel
    from rich.text import Text

    colour = "green" if verdict.passed else "red"
    text = Text()
    first, *rest = verdict.lines()
    for line in rest:
        text.append(line.removeprefix("  ") + "\n", style=_style(line))
    text.rstrip()
    return Panel(text, title=Text(first, f"bold {colour}"), title_align="left", border_style=colour)


def _style(line: str) -> str:
    if line.startswith(("  line ", "  remark: ")):
        return "bold"
    return "dim" if line.startswith(("  | ", "  `liftax explain")) else ""


def show_verdict(console: Printer, verdict: Verdict) -> None:
    """Prints a verdict."""
    if console.fancy:
        console.rich(as_rich(verdict))
    else:
        for line in verdict.lines():
            console.line(line)


def show_markdown(console: Printer, text: str) -> None:
    """Prints a page or a hint."""
    if console.fancy:
        from rich.markdown import Markdown

        console.rich(Markdown(text))
    else:
        for line in text.rstrip().splitlines():
            console.line(line)


def show_list(console: Printer, place: Place) -> None:
    """Prints all exercises, those solved with a mark."""
    solved, current = place.progress.solved, place.current()
    for each in exercises():
        mark = "✓" if each.name in solved else "→" if each == current else " "
        console.line(f"{mark} {each.number:2} {each.name:26} {each.title}")
    console.line(progress_line(place))


def progress_line(place: Place) -> str:
    """`[████░░░░] 7 of 20 solved`."""
    solved = {each.name for each in exercises()} & set(place.progress.solved)
    count, total = len(solved), len(exercises())
    return f"[{'█' * count}{'░' * (total - count)}] {count} of {total} solved"


def tell(console: Printer, place: Place) -> None:
    """Says what the place has to say: a file that was set aside."""
    while place.said:
        console.line(f"note: {place.said.pop(0)}")


def verify(place: Place, limits: Limits, every: Sequence[Exercise] | None = None) -> list[Verdict]:
    """The verdicts on all files of the learner's, two at a time; what passes is noted."""
    with Runner(limits, ahead=False) as runner, ThreadPoolExecutor(2) as pool:

        def checked(exercise: Exercise) -> Verdict:
            source = place.read(exercise)
            if source == exercise.start:  # nothing to be learnt from running that
                return Verdict(exercise.name, "runs", "not begun: the file is as it was shipped")
            return runner.check(exercise, source, place.path(exercise))

        # The order is that of the exercises, whichever is done first.
        verdicts = list(pool.map(checked, every or exercises()))
    for exercise, verdict in zip(every or exercises(), verdicts, strict=True):
        if verdict.passed:
            place.solve(exercise)
    return verdicts


class Session:
    """The practice of one learner at one terminal."""

    def __init__(self, console: Printer, place: Place, runner: Runner) -> None:
        self.console, self.place, self.runner = console, place, runner
        self.exercise = place.current()

    def open(self, exercise: Exercise) -> None:
        """Shows the page of an exercise, and the verdict on its file as it is."""
        self.exercise = exercise
        self.runner.warm(exercise)  # it gets ready while the page is read
        self.place.go_to(exercise)
        self.page()
        self.check()

    def page(self) -> None:
        """Shows the page."""
        show_markdown(self.console, self.exercise.page)
        self.console.line()
        self.console.line(f"Edit {self.place.path(self.exercise)} and save it.")

    def check(self) -> None:
        """Checks the file, and shows the verdict, the progress and the keys."""
        path = self.place.path(self.exercise)
        source = self.place.read(self.exercise)
        if source == self.exercise.start:
            self.console.line("The file is as it was shipped: its holes are yours to fill.")
        else:
            verdict = self.runner.check(self.exercise, source, path)
            show_verdict(self.console, verdict)
            if verdict.passed:
                self.place.solve(self.exercise)
                self.console.line("Solved. n goes to the next, s shows another solution.")
        tell(self.console, self.place)
        self.console.line(progress_line(self.place))
        self.console.line(KEYS)

    def key(self, key: str) -> bool:
        """Does what a key says; whether to go on."""
        commands: dict[str, Callable[[], None]] = {
            "h": self.hint,
            "l": lambda: show_list(self.console, self.place),
            "n": self.next,
            "r": self.reset,
            "s": self.solution,
            "p": self.page,
        }
        if key in ("q", "\x03", "\x04", ""):  # Ctrl-C, Ctrl-D, the end of the input
            return False
        if key in commands:
            commands[key]()
        elif key.isprintable() and not key.isspace():
            self.console.line(f"{key!r} is no key here: {KEYS}")
        return True

    def hint(self) -> None:
        """Shows one more hint; the last is the solution."""
        count = self.place.take_hint(self.exercise)
        self.console.line(f"Hint {count} of {len(self.exercise.hints)}:")
        show_markdown(self.console, self.exercise.hints[count - 1])

    def next(self) -> None:
        """Opens the next exercise that is not solved, from here on and then from the start."""
        solved, here = self.place.progress.solved, self.exercise.number
        # Forward first: who has left one out wants to go on, and not back.
        after = [each for each in exercises() if each.number > here]
        before = [each for each in exercises() if each.number <= here]
        left = [each for each in after + before if each.name not in solved]
        if not left:
            self.console.line(f"All {len(exercises())} exercises are solved.")
            return
        self.open(left[0])

    def reset(self) -> None:
        """Puts the file back as shipped; what was written is kept beside it."""
        kept = self.place.reset(self.exercise)
        said = f"; yours is kept as {kept.name}" if kept else ""
        self.console.line(f"{self.place.path(self.exercise)} is as it was shipped{said}.")

    def solution(self) -> None:
        """Shows the solution, after passing or after all hints."""
        if not self.place.may_see_solution(self.exercise):
            self.console.line("The solution is shown when you have passed, or read all hints (h).")
            return
        show_markdown(self.console, self.exercise.hints[-1])

    def run(self) -> None:
        """Opens the first exercise that is not solved, and goes on until the learner quits."""
        events: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        stop = threading.Event()
        with watched(self.place, events, stop), pressed(events, stop):
            self.open(self.exercise)
            try:
                while True:
                    what, value = events.get()
                    if what == "key" and not self.key(value):
                        break
                    # Other files of the folder change as well: the progress, other exercises, an
                    # editor's own.
                    if what == "file" and value == self.place.path(self.exercise).name:
                        self.check()
            except KeyboardInterrupt:
                pass
        self.console.line(f"{progress_line(self.place)} Until next time.")


@contextlib.contextmanager
def watched(
    place: Place, events: queue.SimpleQueue[tuple[str, str]], stop: threading.Event
) -> Iterator[None]:
    """Puts the names of files that are saved into ``events``."""
    import watchfiles

    def watch() -> None:
        # Some editors write twice, or write another file and rename it: one save, one verdict.
        for changes in watchfiles.watch(place.folder, stop_event=stop, debounce=200, step=20):
            for name in {path.replace("\\", "/").rpartition("/")[2] for _, path in changes}:
                events.put(("file", name))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


@contextlib.contextmanager
def pressed(events: queue.SimpleQueue[tuple[str, str]], stop: threading.Event) -> Iterator[None]:
    """Puts the keys that are pressed into ``events``; lines, where single keys cannot be read."""
    try:
        import select
        import termios
        import tty
    except ModuleNotFoundError:  # not on this system
        threading.Thread(target=_lines, args=(events,), daemon=True).start()
        yield
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def keys() -> None:
        while not stop.is_set():
            # Not for ever: the thread is to end when the session has.
            if select.select([number], [], [], 0.1)[0]:
                events.put(("key", sys.stdin.read(1)))

    tty.setcbreak(number)  # each key at once; Ctrl-C is still Ctrl-C
    thread = threading.Thread(target=keys, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1)
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _lines(events: queue.SimpleQueue[tuple[str, str]]) -> None:
    for line in sys.stdin:
        events.put(("key", line.strip()[:1]))
    events.put(("key", ""))
