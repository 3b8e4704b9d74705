"""The address that flax.linen has for recurrent cells and what runs them."""

from .layers.dtypes import Array as Array
from .layers.dtypes import Dtype as Dtype
from .layers.dtypes import Initializer as Initializer
from .layers.dtypes import PrecisionLike as PrecisionLike
from .layers.recurrent import RNN as RNN
from .layers.recurrent import Bidirectional as Bidirectional
from .layers.recurrent import ConvLSTMCell as ConvLSTMCell
from .layers.recurrent import DenseParams as DenseParams
from .layers.recurrent import GRUCell as GRUCell
from .layers.recurrent import LSTMCell as LSTMCell
from .layers.recurrent import MGUCell as MGUCell
from .layers.recurrent import OptimizedLSTMCell as OptimizedLSTMCell
from .layers.recurrent import RNNCellBase as RNNCellBase
from .layers.recurrent import SimpleCell as SimpleCell
from .layers.recurrent import flip_sequences as flip_sequences
