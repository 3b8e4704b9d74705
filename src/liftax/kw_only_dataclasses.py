"""The address that flax.linen has for dataclasses with keyword-only fields: Python's own."""

from dataclasses import KW_ONLY as KW_ONLY
from dataclasses import dataclass as dataclass
from dataclasses import field as field
