"""Every public name is explained, and what the documentation shows is true."""

import doctest
import enum
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import types
import typing
from pathlib import Path

import jax
import pytest
from choices import slow_but

import signfd_jax

ROOT = Path(__file__).parents[1]


def is_there(name):
    """Whether the library is there that a module of `contrib` is for."""
    return name != "signfd_jax.contrib.flower" or importlib.util.find_spec("flwr")


MODULES = [signfd_jax] + [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(signfd_jax.__path__, "signfd_jax.")
    if "._" not in found.name and is_there(found.name)
]

# What a docstring must say of an array: its shape, or that it is a scalar or a key. Of
# a value whose type the signature leaves open it may instead say that it is a tree,
# somebody's state, or of a type that has a docstring of its own.
SHAPE = re.compile(r"\[.*\]|\b(scalar|shape|key)\b", re.DOTALL)
KIND = re.compile(SHAPE.pattern + r"|\b(tree|state)\b|`[\w.]+`", re.DOTALL)


def defined_in(module):
    """The public classes and functions that the module itself defines, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value)))
    }


def section(docstring, title):
    """Entries of one Google-style section: name to text, in order."""
    body = re.search(rf"^{title}:\n((?:[ ]+.*\n|\n)*)", docstring + "\n", re.MULTILINE)
    if body is None:
        return {}
    entries = re.split(r"^    (\*{0,2}\w+)(?: \(.*?\))?:", body[1], flags=re.MULTILINE)
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def wanted(annotation):
    """The pattern that the explanation of a parameter or field must contain, if any."""
    if annotation in (inspect.Parameter.empty, typing.Any):
        return KIND
    if "jaxtyping." in str(annotation):  # the signature itself shows the shape
        return None
    return SHAPE if re.search(r"\bArray", str(annotation)) else None


def unexplained(annotations, entries, title):
    """What is wrong with a section that must explain these names, in their order."""
    if list(entries) != list(annotations):
        yield f"`{title}:` explains {list(entries)} of {list(annotations)}"
    for name, text in entries.items():
        pattern = wanted(annotations[name]) if name in annotations else None
        if pattern and not pattern.search(text):
            yield f"`{title}:` does not state the shape of `{name}`"


def faults(value, examples):
    """What the docstring of a class or function lacks; `examples` are what runs."""
    docstring = inspect.cleandoc(value.__doc__ or "")
    summary, _, rest = docstring.partition("\n")
    if not summary.endswith("."):
        yield "no one-line summary that ends in a full stop"
    if rest and not rest.startswith("\n"):
        yield "no blank line after the summary"
    if inspect.isclass(value):
        if issubclass(value, BaseException | enum.Enum):
            return
        # Flax gives its modules two fields of its own.
        flax_own = ("parent", "name") if hasattr(value, "apply") else ()
        fields = inspect.get_annotations(value)
        fields = {k: v for k, v in fields.items() if k not in flax_own}
        yield from unexplained(fields, section(docstring, "Attributes"), "Attributes")
        return
    signature = inspect.signature(value)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = {
        stars.get(parameter.kind, "") + name: parameter.annotation
        for name, parameter in signature.parameters.items()
    }
    yield from unexplained(parameters, section(docstring, "Args"), "Args")
    if signature.return_annotation is not None and "\nReturns:\n" not in docstring:
        yield "no `Returns:` section"
    if "\nExamples:\n" not in docstring or not examples:
        yield "no `Examples:` that the doctest runner finds"


def documented():
    """Every public class and function, once, under the module that defines it."""
    found = {}
    for module in MODULES:
        exported = {name: getattr(module, name) for name in module.__all__}
        for name, value in (defined_in(module) | exported).items():
            home = getattr(value, "__module__", "") or ""
            if home.startswith("signfd_jax") and hasattr(value, "__qualname__"):
                found[home, name] = value
    for (home, name), value in found.items():
        module = importlib.import_module(home)
        yield pytest.param(module, name, value, id=f"{home}.{name}")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_what_is_public(module):
    assert module.__doc__
    assert sorted(set(module.__all__)) == sorted(module.__all__), "a name twice"
    for name in module.__all__:
        assert hasattr(module, name), f"__all__ lists {name}, which does not exist"
    assert defined_in(module).keys() <= set(module.__all__), "public, not in __all__"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_values_are_explained(module):
    """A table or a type alias has no docstring: the module's own must name it."""
    for name in module.__all__:
        value = getattr(module, name)
        has_docstring = isinstance(value, types.ModuleType) or (
            hasattr(value, "__module__") and value.__module__.startswith("signfd_jax")
        )
        if not has_docstring:
            assert f"`{name}`" in module.__doc__, f"the module does not explain {name}"


@pytest.mark.parametrize(("module", "name", "value"), list(documented()))
def test_public_name_is_documented(module, name, value):
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    doctests = {test.name: test.examples for test in finder.find(module)}
    examples = doctests.get(f"{module.__name__}.{name}")
    found = list(faults(value, examples))
    assert not found, "; ".join(found)


GOOD = '''
def shifted(rows: jax.Array, amount: int, *rest):
    """Shift every row.

    Args:
        rows: float `[M, D]`.
        amount: how far.
        *rest: states, each a tree.

    Returns:
        Float `[M, D]`.

    Examples:
        >>> shifted(1, 2)
    """
'''


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", None),
        ("Shift every row.", "Shift every row", "full stop"),
        ("row.\n\n", "row.\n", "no blank line"),
        ("        amount: how far.\n", "", "`Args:` explains"),
        ("amount: how", "number: how", "`Args:` explains"),
        ("rows: float `[M, D]`", "rows: one each", "shape of `rows`"),
        ("*rest: states, each a tree", "*rest: whatever", "shape of `*rest`"),
        ("Returns:", "Gives:", "no `Returns:`"),
        ("Examples:", "Likewise:", "no `Examples:`"),
        (">>> ", "", "no `Examples:`"),
        (GOOD, "def f():\n    pass", "full stop"),
        (
            GOOD,
            'class C:\n    """A pair."""\n    x: jax.Array',
            "`Attributes:` explains",
        ),
    ],
)
def test_faults_are_found(old, new, fault):
    namespace = {"jax": jax}
    exec(GOOD.replace(old, new, 1), namespace)
    value = list(namespace.values())[-1]
    examples = doctest.DocTestParser().get_examples(value.__doc__ or "")
    found = list(faults(value, examples))
    assert found == [] if fault is None else any(fault in each for each in found)


def code_blocks(path, language):
    """Line number and text of each fenced block of the language."""
    text = path.read_text()
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.DOTALL):
        yield text[: block.start()].count("\n") + 1, block[1]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", slow_but(PAGES[:1], PAGES), ids=lambda page: page.name)
def test_page_runs(page, tmp_path, monkeypatch):
    """The blocks run in order, in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    # JAX as it comes; the other tests are stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for line, code in code_blocks(page, "python"):
            # The line breaks put the page's own line numbers into a traceback.
            exec(compile("\n" * line + code, page.name, "exec"), namespace)


def test_most_pages_show_code():
    shown = {page.name for page in PAGES if list(code_blocks(page, "python"))}
    silent = {"architecture.md", "glossary.md", "performance.md", "reproduction.md"}
    silent |= {"results.md", "leaderboard.md"}
    silent |= {"plugins.md"}  # a package, which `test_plugins.py` builds
    silent |= {"flower.md"}  # an app, which `test_flower_processes.py` runs
    assert {page.name for page in PAGES} - shown == silent


def test_every_public_name_is_on_a_page_of_the_api():
    """A page shows what `__all__` of its modules lists, from wherever it comes."""
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set()
    for name in filter(is_there, re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)):
        module = importlib.import_module(name)
        shown |= {id(getattr(module, each)) for each in module.__all__}
    missing = [
        f"{module.__name__}.{name}"
        for module in MODULES
        if module.__name__ != "signfd_jax.cli"  # its options are in `signfd --help`
        for name in module.__all__
        if id(getattr(module, name)) not in shown
        and not isinstance(getattr(module, name), types.ModuleType)
    ]
    assert missing == []


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    there = (ROOT / "docs").rglob("*.md")
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in there
    )


def repository_files():
    """What git tracks, and what it would, were it added now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_path_of_one_machine():
    # Spelt with brackets so that this file passes its own test.
    folder = re.compile(r"(?<![\w.~-])/(?:[h]ome|[r]oot|[w]ork|[U]sers|[t]mp)/\w+")
    found = []
    for path in repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:  # an image or an archive
            continue
        found += [f"{path.name}: {hit[0]}" for hit in folder.finditer(text)]
    assert not found, "; ".join(found)
