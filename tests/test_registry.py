"""Components by name: texts and mappings, what they make, and what is said of mistakes."""

import dataclasses
import functools
import json
import re
from typing import Any, Literal

import numpy as np
import pytest

from jaxdiff import registry
from jaxdiff.processes.transforms import TRANSFORMS
from jaxdiff.samplers import DDIM
from jaxdiff.typing import InputError


@dataclasses.dataclass(frozen=True)
class Thing:
    factor: float = 1.0
    kind: Literal["plain", "fancy"] = "plain"
    pair: tuple[int, float] = (1, 2.0)
    rows: tuple[tuple[int, ...], ...] = ()
    count: int | None = None


@dataclasses.dataclass(frozen=True)
class Needs:
    size: int
    key: Any = None


def opaque(maker: Any = print, **options: Any) -> dict[str, Any]:
    return {"maker": maker, **options}


NAMES = {"thing": Thing, "big": functools.partial(Thing, factor=9.0), "needs": Needs, "opaque": opaque, "other": Thing}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("thing", Thing()),
        ("other:factor=2", Thing(factor=2.0)),
        ("big", Thing(factor=9.0)),
        ("big:kind=fancy", Thing(factor=9.0, kind="fancy")),
        ("thing:pair=(3,4),kind=fancy,count=None", Thing(pair=(3, 4.0), kind="fancy")),
        ({"name": "thing", "rows": [[1, 2], [3]], "pair": [3, 4]}, Thing(rows=((1, 2), (3,)), pair=(3, 4.0))),
        ("needs:size=3", Needs(3, key=7)),  # key is given by code
        (Thing(factor=5.0), Thing(factor=5.0)),
        ("opaque:a=1", {"maker": print, "a": 1, "key": 7}),
        ("jaxdiff.samplers:DDIM", DDIM()),
        ("jaxdiff.samplers:DDIM:eta=1", DDIM(eta=1.0)),
        ({"name": "jaxdiff.samplers:DDIM", "eta": 1}, DDIM(eta=1.0)),
        ("jaxdiff.samplers.ancestral:DDIM", DDIM()),
        ("fractions:Fraction.from_float:f=0.5", 0.5),
    ],
)
def test_a_text_a_mapping_or_an_object_makes_a_component(value: Any, expected: Any) -> None:
    made = registry.make("thing", value, NAMES, key=7)
    assert made == expected
    if isinstance(made, Thing):
        assert [type(number) for number in made.pair] == [int, float]
        assert type(made.factor) is float


def test_the_mapping_of_a_component_has_its_plain_defaults_and_makes_it_again() -> None:
    for value in ("thing:factor=3", "big", "needs:size=2", "opaque:a=(1,2)", "jaxdiff.samplers:DDIM"):
        mapping = registry.normalize("thing", value, NAMES, given=("key",))
        assert "key" not in mapping
        assert registry.normalize("thing", mapping, NAMES, given=("key",)) == mapping
        assert registry.make("thing", mapping, NAMES) == registry.make("thing", value, NAMES)
    assert registry.normalize("thing", "thing:factor=3", NAMES) == {"name": "thing", **vars(Thing(factor=3.0))}
    assert registry.normalize("thing", "opaque", NAMES) == {"name": "opaque"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "thign",
            "thing = 'thign'; the known ones are big, needs, opaque, other, thing, or package.module:Name; did you",
        ),
        ("", "thing = ''; the known ones are big"),
        (":Thing", "thing = ':Thing'; the known ones are big"),
        (".own:Thing", "thing = '.own:Thing'; the known ones are big"),
        (
            "thing:factr=1",
            "thing = 'thing:factr=1' has no option 'factr'; it takes factor, kind, pair, rows, count; did",
        ),
        ("thing:factor", "thing = 'thing:factor' has no option 'factor'; write NAME:OPTION=VALUE"),
        ("thing:factor=1,factor=2", "thing = 'thing:factor=1,factor=2' gives 'factor' twice; give it once"),
        ("thing:factor=x", "thing.factor = 'x' has the wrong type; it must be float"),
        ("thing:factor=True", "thing.factor = True has the wrong type; it must be float"),
        ("thing:kind=fanci", "thing.kind = 'fanci' is unknown; did you mean 'fancy'?"),
        ("thing:pair=(1,)", "thing.pair = (1,) has the wrong type; it must be tuple[int, float]"),
        ("thing:count=1.5", "thing.count = 1.5 has the wrong type; it must be int | None"),
        ("needs", "thing = 'needs' needs a value for size; write needs:size=VALUE"),
        ("needs:key=3", "thing = 'needs:key=3' has no option 'key'; it takes size"),
        ({"size": 3}, "thing.name is missing; the known ones are big"),
        ("nowhere.at.all:Thing", "thing = 'nowhere.at.all:Thing': No module named 'nowhere'; the module must be"),
        (
            "thign:factor",
            "thing = 'thign:factor': No module named 'thign'; the module must be importable: put its",
        ),
        ("jaxdiff.samplers:DDMI", "thing = 'jaxdiff.samplers:DDMI': module 'jaxdiff.samplers' has no attribute 'DDMI'"),
        ("jaxdiff.samplers:__name__", "thing = 'jaxdiff.samplers:__name__' is a str; name a class or function"),
    ],
)
def test_a_mistake_is_told_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}") as error:
        registry.make("thing", value, NAMES, key=7)
    assert "\n" not in str(error.value)


def test_a_tuple_inside_a_mapping_comes_back_from_json_as_it_was() -> None:
    once = registry.normalize("thing", {"name": "opaque", "a": [{"name": "shift", "by": (1.0, (2, 3))}]}, NAMES)
    again = registry.normalize("thing", json.loads(json.dumps(once)), NAMES)
    assert registry.differences(once, again) == []


def test_a_list_in_a_text_is_one_option() -> None:
    made = registry.make("transform", "translation:by=[1.0,2.0]", TRANSFORMS)
    np.testing.assert_array_equal(made.by, [1.0, 2.0])


def test_a_value_that_json_can_not_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"^thing\.a = <object .*; it must be a value that JSON can hold"):
        registry.normalize("thing", {"name": "opaque", "a": object()}, NAMES)
