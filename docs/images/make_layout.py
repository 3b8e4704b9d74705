"""Makes layout.png, the picture of a layout's page in the README, with a headless Chromium.

python docs/images/make_layout.py
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import liftax as nn

SIZE = 1280, 1500


def stacked(name: str) -> dict:
    return {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True, "dropout": True},
        "metadata_params": {nn.PARTITION_NAME: name},
    }


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="down")(nn.gelu(nn.Dense(256, name="up")(x)))


class Block(nn.Module):
    """Attention, then a mixture of experts; for one example."""

    @nn.compact
    def __call__(self, x, _):
        attention = nn.MultiHeadDotProductAttention(num_heads=4, name="attention")
        x = x + nn.Dropout(0.1, deterministic=False)(attention(nn.LayerNorm(name="norm_1")(x)))
        experts = nn.vmap(Expert, in_axes=None, axis_size=4, **stacked("experts"))
        return x + experts(name="experts")(nn.LayerNorm(name="norm_2")(x)).mean(0), None


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(256, 64, name="embed")(ids)
        layers = nn.scan(nn.remat(Block), length=12, **stacked("layers"))
        batched = nn.vmap(
            layers,
            in_axes=(0, None),
            variable_axes={"params": None},
            split_rngs={"params": False, "dropout": True},
            axis_name="batch",
        )
        x, _ = batched(name="blocks")(x, None)
        return nn.Dense(256, name="head")(nn.LayerNorm(name="norm")(x))


def main() -> None:
    key = jax.random.key(0)
    ids = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    layout = nn.layout(Decoder(), {"params": key, "dropout": key}, ids).with_cost()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("needs Chromium")
    picture = Path(__file__).with_name("layout.png")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        row = layout.variables.index(layout["params/blocks/experts/up/kernel"])
        look = f"document.getElementById('v{row}').focus({{preventScroll: true}})"
        text = layout.to_html().replace("</body>", f"<script>{look}</script></body>")
        page.write_text(text, encoding="utf-8")
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
            "--disable-background-networking --disable-component-update --disable-sync "
            "--virtual-time-budget=3000 "
            f"--window-size={SIZE[0]},{SIZE[1]} --screenshot={picture} "
            f"--user-data-dir={folder}/profile"
        )
        subprocess.run([chromium, *flags.split(), page.as_uri()], check=True)


if __name__ == "__main__":
    main()
