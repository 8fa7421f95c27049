"""A hook of MkDocs: formulas become MathML, which browsers draw without a script."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex makes of a formula with `generic: true`.
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(content, page, **_):
    """Draw the formulas of a page, those of its docstrings included."""

    def mathml(found):
        tag, formula = found[1], html.unescape(found[2])
        drawn = convert(formula, display="block" if tag == "div" else "inline")
        if "\\" in drawn:  # a command that is not known is left as it is
            raise PluginError(f"{page.file.src_path}: cannot draw {formula!r}")
        return f'<{tag} class="arithmatex">{drawn}</{tag}>'

    return FORMULA.sub(mathml, content)
