"""`liftax practice`: learn lifts by writing them, graded by where the variables lie.

Twenty exercises, a folder each (`exercises.py`), are graded stage by stage (`grade.py`): an answer
runs, its layout is the goal's, then its keys, its numbers, its costs. A process of its own runs the
learner's code (`running.py`); terminal, browser and notebook show the same verdict.
"""

from ..lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
