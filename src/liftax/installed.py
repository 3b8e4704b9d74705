"""How this liftax came here, and so how more of it is installed: what it can do without."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from .errors import MissingExtraError

_CHECKOUT = Path(__file__).resolve().parents[2]


def how_to_install(extra: str) -> str:
    """The command that installs an optional extra of liftax, as it was installed itself.

    By its name from an index, from a folder or an address; or from the checkout that it runs from.

    Args:
      extra: its name, as in ``liftax[train]``.

    Example:
      >>> how_to_install("train").startswith("pip install ")
      True
    """
    try:
        found = importlib.metadata.distribution("liftax")
        text = found.read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return _of_folder(_CHECKOUT, extra, editable=False)
    except OSError:  # its files cannot be read now: no more may be open, say
        text = None
    # From an index: only what came from elsewhere has such a note (PEP 610).
    if text is None:
        return f"pip install 'liftax[{extra}]'"
    try:
        told = json.loads(text)
        url = str(told["url"])
        folder = unquote(urlparse(url).path) if "dir_info" in told else None
        if folder is not None:
            return _of_folder(Path(folder), extra, bool(told["dir_info"].get("editable")))
        # A repository is called by its kind, an archive by its address alone.
        vcs = f"{told['vcs_info']['vcs']}+" if "vcs_info" in told else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"pip install 'liftax[{extra}]'"
    return f"pip install {shlex.quote(f'liftax[{extra}] @ {vcs}{url}')}"


def needed(module: str, extra: str, said: str) -> Any:
    """Imports a module that is installed with an optional extra.

    Args:
      module: its name, as for an import.
      extra: the extra of liftax that it comes with.
      said: what cannot be done without it, for the message.

    Raises:
      MissingExtraError: its package is not installed; the message says how it is.
      Whatever else its import raises, for the lack of a package of its own too.

    Example:
      >>> needed("json", "train", "this needs json").loads("1")
      1
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        # A module that the extra needs in turn is a broken installation, told as it is.
        if (error.name or top).partition(".")[0] != top:
            raise
        raise MissingExtraError(f"{said}: {how_to_install(extra)}") from error


def _of_folder(folder: Path, extra: str, editable: bool) -> str:
    """From a checkout, if that is still there."""
    if not (folder / "pyproject.toml").is_file():
        return f"pip install 'liftax[{extra}]'"
    return f"pip install {'-e ' * editable}{shlex.quote(f'{folder}[{extra}]')}"
