"""The process that runs one answer: `python -m liftax.practice.worker EXERCISE`.

It is started ahead of time: jax is imported and the goal computed before there is an answer, so
that a verdict waits for nothing but the learner's code. It says so with the line `{"ready": true}`,
takes one request on its input, writes one verdict, and ends. What the learner's code prints goes
elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TextIO

OUTPUT_BYTES = 16 << 20
"""How much an answer may print, or write into one file."""


def main(name: str) -> None:
    """Serves one request about an exercise."""
    from .exercises import find
    from .grade import Grader

    verdicts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Whatever the answer prints, from Python or from C, goes with the errors, apart from verdicts.
    os.dup2(2, 1)
    grader = Grader(find(name))
    grader.warm()
    _say(verdicts, {"ready": True})
    text = sys.stdin.readline()
    if not text:  # the program that started this has ended
        os._exit(0)
    request = json.loads(text)
    # An answer that asks for input reads the end of a file, and not our requests.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.insert(0, str(Path(request["path"]).parent))
    _limit(request["memory"], request["seconds"])
    verdict = grader.check(request["source"], request["path"])
    sys.stdout.flush()
    _say(verdicts, verdict.to_dict())
    # Threads that the answer started, and what it has to say at the end, are not waited for.
    os._exit(0)


def _say(out: TextIO, line: object) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _limit(memory: int, seconds: float) -> None:
    """Limits what the answer may take beyond what this process has taken so far."""
    try:
        import resource
    except ModuleNotFoundError:  # not on this system: the time limit of the other side remains
        return
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        pages = []
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # Should the other side be killed, an endless loop here ends all the same.
    cpu = int(usage.ru_utime + usage.ru_stime + 8 * seconds) + 2
    limits = {resource.RLIMIT_FSIZE: OUTPUT_BYTES, resource.RLIMIT_CPU: cpu}
    if pages:
        limits[resource.RLIMIT_AS] = int(pages[0]) * resource.getpagesize() + memory
    for what, limit in limits.items():
        _, hard = resource.getrlimit(what)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(what, (limit, hard))


if __name__ == "__main__":
    main(sys.argv[1])
