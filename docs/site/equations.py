"""An mkdocs hook that turns the equations of a page into MathML, so that pages need no script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# The HTML that pymdownx.arithmatex makes of $…$ and $$…$$.
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Replace the TeX in a page by MathML."""
    return _EQUATION.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    inline = found[2] == "("
    mathml = convert(html.unescape(found[3]).strip(), display="inline" if inline else "block")
    return mathml if inline else f'<div class="equation">{mathml}</div>'
