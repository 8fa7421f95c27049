"""Hooks of MkDocs: the notebooks are pages, and no page needs a network.

Formulas become MathML, which browsers draw without a script.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

# What pymdownx.arithmatex makes of a formula with `generic: true`.
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)

# The same in the text of a notebook; what is code, or a script, is matched to be kept.
IN_NOTEBOOK = re.compile(
    r"<(?P<code>pre|code|script|style)\b.*?</(?P=code)>"
    r"|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$<>]+)\$",
    re.DOTALL,
)

# Scripts that a notebook's page would load from a network, or from nowhere.
LOADED = re.compile(
    r'<script src="">\s*</script>'
    r"|<script[^>]*>(?:(?!</script>).)*https://.*?</script>"
    r'|<script type="text/x-mathjax-config">.*?</script>',
    re.DOTALL,
)


@event_priority(100)  # before mkdocs-jupyter, which makes pages of notebooks
def on_files(files, config):
    """Add the notebooks and the figures, which do not lie with the other pages."""
    for kind in ("notebooks/*.ipynb", "benchmarks/results/*.png"):
        for path in sorted(ROOT.glob(kind)):
            name, to = path.relative_to(ROOT).as_posix(), config.site_dir
            files.append(File(name, str(ROOT), to, config.use_directory_urls))
    return files


def on_page_markdown(markdown, **_):
    """Let pages name the figures as they lie beside them in the repository."""
    return markdown.replace("(../benchmarks/", "(benchmarks/")


def on_page_content(content, page, **_):
    """Draw the formulas of a page, those of its docstrings included."""
    if page.file.src_path.endswith(".ipynb"):
        content = LOADED.sub("", content)
        return IN_NOTEBOOK.sub(_in_notebook, content)

    def mathml(found):
        tag, formula = found[1], html.unescape(found[2])
        drawn = convert(formula, display="block" if tag == "div" else "inline")
        if "\\" in drawn:  # a command that is not known is left as it is
            raise PluginError(f"{page.file.src_path}: cannot draw {formula!r}")
        return f'<{tag} class="arithmatex">{drawn}</{tag}>'

    return FORMULA.sub(mathml, content)


def _in_notebook(found):
    if found["code"]:
        return found[0]
    formula = html.unescape(found["block"] or found["inline"])
    return convert(formula, display="block" if found["block"] else "inline")
