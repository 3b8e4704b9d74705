"""The command line itself: finding commands, exit codes, what is printed where."""

import errno
import io
import os
import subprocess
import sys

import pytest

from liftax.cli import CommandError, Console, Interrupted, _main, forward, main, require


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lists_its_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "forward" in shown
    assert "train" in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("liftax ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["forward", "--seed", "one"], "argument --seed: must be a whole number, not 'one'"),
        (["forward", "--seeds", "1"], "unrecognized arguments: --seeds 1"),
        (["forward", "--out", "x"], "unrecognized arguments: --out x"),
        (["train", "--model", "cnn"], "argument --model: invalid choice: 'cnn'"),
    ],
)
def test_mistyped(capsys, argv, message):
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CommandError("bad\n  file"), 2, "liftax forward: bad file\n"),
        (Interrupted("stopped"), 130, "liftax forward: stopped\n"),
        (KeyboardInterrupt(), 130, "liftax forward: interrupted\n"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, line):
    def run(args, console):
        raise error

    monkeypatch.setattr(forward, "run", run)
    assert main(["forward"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def run(args, console):
        raise RuntimeError("a bug")

    monkeypatch.setattr(forward, "run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["forward"])


def test_missing_extra():
    with pytest.raises(CommandError, match=r"'no_such_package': pip install .*\[train\]"):
        require("no_such_package.part", "train")


def test_every_command_keeps_the_contract():
    for name in _main._commands():
        command = __import__(f"liftax.cli.{name}", fromlist=["run"])
        assert command.HELP
        assert callable(command.configure)
        assert callable(command.run)


class TestConsole:
    def test_piped_is_plain(self):
        out = io.StringIO()
        console = Console(out)
        console.line("[bold]as it is[/bold]")
        console.table(("name", "n"), [("a", "1"), ("long name", "12")], right=(1,))
        assert not console.fancy
        assert out.getvalue() == (
            "[bold]as it is[/bold]\nname        n\na           1\nlong name  12\n"
        )

    def test_terminal(self):
        out = Terminal()
        console = Console(out)
        console.line("[bold]as it is[/bold]")
        console.table(("name", "n"), [("[a]", "1")], right=(1,))
        assert console.fancy
        assert "[bold]as it is[/bold]" in out.getvalue()
        assert "[a]" in out.getvalue()

    @pytest.mark.parametrize(("total", "shown"), [(1, 1), (7, 7), (10, 10), (25, 9), (100, 10)])
    def test_piped_progress_is_a_few_lines(self, total, shown):
        out = io.StringIO()
        with Console(out).progress(total, "epoch") as step:
            for i in range(total):
                step(loss=str(i))
        lines = out.getvalue().splitlines()
        assert len(lines) == shown
        assert lines[-1] == f"epoch {total}/{total}  loss {total - 1}"

    def test_progress_at_a_terminal(self):
        out = Terminal()
        with Console(out).progress(3, "epoch") as step:
            for _ in range(3):
                step(loss="0.5")
        assert "loss 0.5" in out.getvalue()
        assert "3/3" in out.getvalue()

    def test_without_rich(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        out = Terminal()
        Console(out).line("plain")
        assert out.getvalue() == "plain\n"


def test_module_and_closed_pipe():
    """`python -m liftax ... | head -1` ends without a traceback, in an ASCII locale too."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "liftax", "forward", "--layers", "1"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def test_an_output_that_cannot_be_written(capsys, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(forward, "run", lambda args, console: Console(Full()).line("a line"))
    assert main(["forward"]) == 2
    shown = capsys.readouterr().err
    assert shown == "liftax forward: the output cannot be written: No space left on device\n"
