from flax.core.frozen_dict import FrozenDict as FrozenDict
from flax.core.frozen_dict import copy as copy
from flax.core.frozen_dict import freeze as freeze
from flax.core.frozen_dict import pop as pop
from flax.core.frozen_dict import pretty_repr as pretty_repr
from flax.core.frozen_dict import unfreeze as unfreeze

NAMES: tuple[str, ...]
