"""Programs written for flax.linen, as they are: liftax in flax's place.

`install` lets `import flax.linen`, its submodules, the lifting and scope part of `flax.core`, and
`flax.errors` mean liftax, in this process, for everybody who imports them: third-party packages
come along. `flax.struct`, `serialization`, `traverse_util`, `training` and `FrozenDict` stay
flax's.

    import liftax.adopt
    liftax.adopt.install()       # the first lines of the program

or, without touching the program, `liftax run script.py`, and for tests `pytest -p
liftax.adopt.pytest`.
"""

from .standing import Adoption as Adoption
from .standing import adopted as adopted
from .standing import install as install
from .standing import uninstall as uninstall
