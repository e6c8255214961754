"""The notebooks are in jupytext's percent format, check what they say, and are listed. `.ci/notebooks` runs them."""

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path.read_text() for path in sorted((ROOT / "notebooks").glob("*.py"))}
PAGE = (ROOT / "docs" / "notebooks.md").read_text()
HEADER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""


def cells_of(text: str) -> list[tuple[str, str]]:
    """The markers and contents of the cells, after the header."""
    parts = re.split(r"^# %%(.*)\n", text.removeprefix(HEADER), flags=re.MULTILINE)
    assert parts[0].strip() == "", "nothing stands between the header and the first cell"
    return [(marker.strip(), content.strip("\n")) for marker, content in zip(parts[1::2], parts[2::2], strict=True)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_in_percent_format(name: str) -> None:
    text = NOTEBOOKS[name]
    assert text.startswith(HEADER)
    cells = cells_of(text)
    for marker, content in cells:
        assert marker in ("", "[markdown]")
        assert content, "an empty cell"
        if marker:
            lines = content.split("\n")
            assert all(re.match(r"#( |$)", line) for line in lines), "a line of text that is no comment"
        else:
            ast.parse(content)
    marker, title = cells[0]
    assert marker == "[markdown]"
    assert re.match(r"# # \S", title)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_text_does_not_become_a_list_by_chance(name: str) -> None:
    """A line of a paragraph that begins with a minus sign, as after a line break in an equation, starts a list."""
    for marker, content in cells_of(NOTEBOOKS[name]):
        lines = content.split("\n") if marker else []
        for before, line in itertools.pairwise(lines):
            inside = before.strip() != "#" and not re.match(r"# (- |  )", before)
            assert not (inside and re.match(r"# [-+*] ", line)), line


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_checks_its_numbers_and_says_how_long_it_takes(name: str) -> None:
    code = "\n\n".join(content for marker, content in cells_of(NOTEBOOKS[name]) if not marker)
    nodes = list(ast.walk(ast.parse(code)))
    checks = [node for node in nodes if isinstance(node, ast.Assert)]
    checks += [node for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("assert_")]
    assert checks
    assert re.search(r"^# It takes about \d+ s on 2 cores\.$", NOTEBOOKS[name], re.MULTILINE)


def test_the_page_lists_every_notebook_with_the_same_seconds() -> None:
    listed = dict(re.findall(r"^\| `(\w+)\.py` \|.*\| (\d+) s \|$", PAGE, re.MULTILINE))
    stated = {name: re.search(r"It takes about (\d+) s", text).group(1) for name, text in NOTEBOOKS.items()}
    assert listed == stated
