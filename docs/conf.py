"""How Sphinx builds the pages that `make.py` gathers."""

import ast
import dataclasses
import hashlib
import importlib.metadata
import inspect
import re
import shutil
import textwrap
from pathlib import Path

import liftax

project = "liftax"
version = release = importlib.metadata.version("liftax")
copyright = "the authors of liftax, Apache License 2.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["files", "images/*.py"]
html_theme = "furo"
html_title = f"liftax {release}"
html_show_sphinx = html_show_copyright = html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4


def digest(package):
    """What the tutorials printed holds for one state of the package."""
    found = hashlib.sha256()
    for file in sorted(Path(package).rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


# Tutorials run when they are built, unless neither they nor the package have changed.
nb_execution_mode = "cache"
caches = Path(__file__).parents[1] / "cache"
nb_execution_cache_path = str(caches / digest(Path(liftax.__file__).parent))
for old in caches.glob("*/"):
    if str(old) != nb_execution_cache_path:
        shutil.rmtree(old)
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300

python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]
default_role = "code"
copybutton_exclude = ".linenos, .gp, .go"


def say_seconds(app, env):
    """How long each notebook took; a tutorial is to stay under a minute on two cores."""
    for name, data in sorted(env.nb_metadata.items()):
        taken = (data.get("exec_data") or {}).get("runtime")
        if taken:
            print(f"{name} ran in {taken:.0f} s")


# Several arguments on one line of "Args:", of which some have stars.
NAMES = re.compile(r"^\s+(?:\*{0,2}\w+, )+\*{0,2}\w+: ")


def before_napoleon(app, what, name, obj, options, lines):
    """Three things that Napoleon would take otherwise.

    What stands before a colon in "Returns:" is a sentence, not a type; ``rngs, *args: ...`` names
    two arguments, without emphasis; "Attributes:" would be headed "Variables".
    """
    for number in range(len(lines) - 1):
        lines[number] = NAMES.sub(lambda m: m[0].replace("*", r"\*"), lines[number])
        lines[number] = re.sub(r"^( *)Attributes:$", r"\1Fields:", lines[number])
        if lines[number].strip() in ("Returns:", "Yields:"):
            text = lines[number + 1]
            indent = len(text) - len(text.lstrip())
            lines[number + 1] = f"{text[:indent]}: {text[indent:]}"


def _field(field, node):
    """A field as an argument; what a factory makes is no default that says anything."""
    text = f"{field.name}: {ast.unparse(node.annotation)}"
    if field.default_factory is not dataclasses.MISSING:
        return f"{text} = ..."
    if field.default is dataclasses.MISSING:
        return text
    simple = isinstance(field.default, (bool, int, float, str, tuple, type(None)))
    if simple:
        return f"{text} = {field.default!r}"
    written = node.value is not None and not isinstance(node.value, ast.Call)
    return f"{text} = {ast.unparse(node.value) if written else '...'}"


def as_typed(app, what, name, obj, options, signature, returns):
    """A signature as it stands in the source, with the names that the types have there."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    except (TypeError, OSError, SyntaxError):
        return None
    if isinstance(node, ast.FunctionDef):
        if what == "method" and node.args.args and node.args.args[0].arg in ("self", "cls"):
            del node.args.args[0]
        return f"({ast.unparse(node.args)})", node.returns and ast.unparse(node.returns)
    if isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(obj):
        typed = {}
        for base in reversed([c for c in obj.__mro__ if c.__module__.startswith("liftax")]):
            source = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            typed |= {n.target.id: n for n in source.body if isinstance(n, ast.AnnAssign)}
        fields = [f for f in dataclasses.fields(obj) if f.init and f.name in typed]
        fields = [f for f in fields if f.name not in ("parent", "name")]
        # Keywords come last in a call, wherever the field stands.
        given = [_field(f, typed[f.name]) for f in fields if not f.kw_only]
        keywords = [_field(f, typed[f.name]) for f in fields if f.kw_only]
        return f"({', '.join([*given, *(['*'] if keywords else []), *keywords])})", None
    return None


def setup(app):
    app.connect("autodoc-process-signature", as_typed)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("env-updated", say_seconds)
