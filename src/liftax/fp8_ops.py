"""The address that flax.linen has for products in eight bits.

The functions of arrays are flax's own, where flax is installed; its operators are modules of flax,
which `nn.from_linen` brings here.
"""

from __future__ import annotations

from typing import Any

from .absent import flaxs_own, refusal

_FUNCTIONS = frozenset(
    """compute_amax_history compute_scale dequantize dot_general_with_precision
    dot_general_with_precision_jvp fm32 fp32_max_grad fp8_scaled_dot_general get_fp8_max in_q in_qdq
    out_dq out_qdq qdq quantize quantize_dequantize_update quantized_dot update_fp8_meta""".split()
)


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return flaxs_own(__name__, name, "flax.linen.fp8_ops", "Install it: pip install flax")
    raise refusal(__name__, name, _FUNCTIONS)
