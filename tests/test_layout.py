"""The house plan: which module may import which, and what a bare import must not."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import signfd_jax

ROOT = Path(__file__).parents[1]
PACKAGE = "signfd_jax"
SOURCE = Path(signfd_jax.__file__).parent  # outside the checkout: the installed wheel

# Each module, lowest first, and those it may import: the table of docs/architecture.md.
# A package is one module here, whose files may import each other; `package.file` opens
# one file.


def read_table(text):
    """The rows of the table: module to the modules that it may import."""
    arrows = {}
    for name, imports in re.findall(
        r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE
    ):
        arrows[name] = set(re.findall(r"`([\w.]+)`", imports))
        if "the decoders" in imports:
            names = list(arrows)
            arrows[name] |= set(names[: names.index("decoders") + 1])
    return arrows


ARROWS = read_table((ROOT / "docs" / "architecture.md").read_text())

# What every module may import from outside (pyproject's dependencies) ...
CORE = {"jax", "jaxlib", "jaxtyping", "numpy", "optax"}
# ... and where the extras `experiments` and `flower` may be used.
EXTRA = {
    "data": {"pooch", "sklearn"},
    "models": {"flax"},
    "experiments": {"flax", "matplotlib", "orbax", "pandas", "tqdm", "tyro"},
    "cli": {"rich", "tqdm", "tyro"},
    "contrib": {"flwr"},
}

FILES = sorted(SOURCE.rglob("*.py"))


def imported(source, package):
    """Dotted names that the source of a module in `package` imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `from .x import y`: one dot is this package
                parents = package.split(".")[: -(node.level - 1) or None]
                base = ".".join([*parents, base] if base else parents)
            if base == PACKAGE:  # `from signfd_jax import signs`
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield base


def forbidden(path, root=SOURCE.parent):
    """What the file imports against the tables, as sentences."""
    parts = path.relative_to(root).with_suffix("").parts
    module = parts[1]
    if module == "__init__":
        return []  # the bare import is tested by what it loads, below
    if module not in ARROWS:
        return [f"{module} has no row in ARROWS"]
    wrong = []
    for name in imported(path.read_text(), ".".join(parts[:-1])):
        head, _, rest = name.partition(".")
        if name == f"{PACKAGE}.__version__":
            continue
        if head == PACKAGE:
            allowed = ARROWS[module] | {module}
            if not any(f"{rest}.".startswith(f"{target}.") for target in allowed):
                wrong.append(f"{module} may not import {name}")
        elif head not in sys.stdlib_module_names | CORE | EXTRA.get(module, set()):
            wrong.append(f"{module} may not import {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_table(path):
    wrong = forbidden(path)
    assert not wrong, "; ".join(wrong)


def test_table_has_no_cycle():
    rows = list(ARROWS)
    for position, (module, targets) in enumerate(ARROWS.items()):
        heads = {target.partition(".")[0] for target in targets}
        assert heads <= set(rows[:position]), f"{module} imports a later row"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("signs", "import signfd_jax.decoders.base"),
        ("signs", "from signfd_jax import decoders"),
        ("signs", "from .decoders import llr_weights"),
        ("signs", "def f():\n    from signfd_jax.simulate import run"),
        ("decoders", "from signfd_jax import llr_weights"),  # through the front door
        ("decoders", "import signfd_jax"),
        ("attacks/basic", "from ..transforms import sign_sgd_fd"),
        ("models", "from signfd_jax.experiments._engine.prepare import run"),
        ("simulate", "import matplotlib.pyplot as plt"),
        ("transforms", "import flax"),
        ("somewhere", ""),
    ],
)
def test_forbidden_imports_are_found(module, source, tmp_path):
    path = tmp_path / PACKAGE / f"{module}.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert len(forbidden(path, tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attacks/basic", "from . import base\nfrom .base import Attack"),
        ("attacks/basic", "from signfd_jax.attacks.base import Attack"),
        ("decoders", "from . import signs\nfrom signfd_jax.signs._tally import Vote"),
        ("paper/report", "from signfd_jax.experiments.report import communication"),
        ("experiments", "import matplotlib.pyplot as plt\nimport json"),
    ],
)
def test_allowed_imports_pass(module, source, tmp_path):
    path = tmp_path / PACKAGE / f"{module}.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert forbidden(path, tmp_path) == []


def test_libraries_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        imports = {"scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}
        declared = (requirement.split(">=")[0] for requirement in requirements)
        return {imports.get(name, name) for name in declared}

    extras = project["optional-dependencies"]
    assert names(project["dependencies"]) == CORE
    declared = names(extras["experiments"]) | names(extras["log"]) & {"pandas"}
    declared |= names(extras["flower"])
    assert declared == set().union(*EXTRA.values())


def test_bare_import_is_light():
    light = {f"{PACKAGE}.{name}" for name in ("data", "models", "experiments")}
    light |= set().union(*EXTRA.values())
    code = f"import sys, {PACKAGE}; print(*sys.modules, sep='\\n')"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert light & set(process.stdout.split()) == set()
