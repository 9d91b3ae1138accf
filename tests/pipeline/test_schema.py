"""Settings from plain values: what is taken, and what is said of what is not."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, MinLen

from unlearnlib.pipeline import schema
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.pipeline.schema import build


@dataclass(frozen=True)
class Inner:
    """Nested settings with a rule across fields."""

    low: Annotated[float, Ge(0)] = 0.0
    high: Annotated[float, Le(1)] = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low:g} above high={self.high:g}")


@dataclass(frozen=True)
class Settings:
    """Settings of every type that the rooms use."""

    steps: Annotated[int, Ge(1)]
    rate: Annotated[float, Gt(0)] = 0.1
    limit: Annotated[float, Ge(0)] | None = None
    flag: bool = False
    schedule: Literal["constant", "cosine"] = "constant"
    scales: Annotated[tuple[float, ...], MinLen(1)] = (1.0,)
    inner: Inner = field(default_factory=Inner)


def test_plain_values_become_settings_nested_ones_too() -> None:
    built = build(
        Settings,
        {"steps": 3, "rate": 1, "limit": 2, "scales": [1, 2.5], "inner": {"low": 0.5}},
    )
    assert built == Settings(3, 1.0, 2.0, scales=(1.0, 2.5), inner=Inner(0.5))
    assert type(built.rate) is float
    assert type(built.scales) is tuple
    assert build(Settings, {"steps": 1, "scales": (1, 2)}).scales == (1.0, 2.0)
    assert build(Settings, {"steps": 1}) == Settings(1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps = 0: should be greater than or equal to 1"),
        ({"steps": "3"}, "steps = '3': should be a valid integer"),
        ({"steps": 3.0}, "steps = 3.0: should be a valid integer"),
        ({"steps": True}, "steps = True: should be a valid integer"),
        ({"steps": None}, "steps = None: should be a valid integer"),
        (
            {"rate": "1e-3"},
            "rate = '1e-3': should be a valid number; that is a text to YAML, write 1.0e-3",
        ),
        (
            {"rate": "0.5"},
            "rate = '0.5': should be a valid number; that is a text, leave its quotation marks out",
        ),
        ({"rate": "half"}, "rate = 'half': should be a valid number"),
        (
            {"schedule": "cosin"},
            "schedule = 'cosin': should be 'constant' or 'cosine'; did you mean 'cosine'?",
        ),
        ({"rate": True}, "rate = True: should be a valid number"),
        ({"rate": float("nan")}, "rate = nan: should be a finite number"),
        ({"rate": float("inf")}, "rate = inf: should be a finite number"),
        ({"limit": -1}, "limit = -1: should be greater than or equal to 0"),
        ({"flag": 1}, "flag = 1: should be a valid boolean"),
        ({"schedule": "linear"}, "schedule = 'linear': should be 'constant' or 'cosine'"),
        ({"scales": []}, "scales = []: should have at least 1 item, not 0"),
        ({"scales": [1, "a"]}, "scales.1 = 'a': should be a valid number"),
        ({"inner": {"low": 2}}, "inner: low=2 above high=1"),
        ({"inner": {"lo": 2}}, "inner.lo = 2: no such key; did you mean 'low'?"),
        ({"inner": 3}, "inner = 3: should be"),
        ({"shedule": "cosine"}, "shedule = 'cosine': no such key; did you mean 'schedule'?"),
        ({"zzz": 1}, "zzz = 1: no such key; there are steps, rate, limit, flag, schedule"),
        ({"rate": object()}, "not a plain value"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_allowed(given: dict, said: str) -> None:
    with pytest.raises(ParameterError) as caught:
        build(Settings, {"steps": 3} | given)
    assert f"  {said}" in str(caught.value)
    assert "test_schema.Settings" in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ParameterError, match=r"steps: is missing; give it a value"):
        build(Settings, {})


def test_all_problems_are_said_at_once() -> None:
    given = {"steps": 0, "rate": -1, "flag": "no", "inner": {"low": -1, "higher": 1}}
    with pytest.raises(ParameterError) as caught:
        build(Settings, given)
    lines = str(caught.value).splitlines()[1:]
    assert {line.split(" = ")[0].strip() for line in lines} == {
        *("steps", "rate", "flag", "inner.low", "inner.higher"),
    }


def test_long_values_are_shortened() -> None:
    with pytest.raises(ParameterError) as caught:
        build(Settings, {"steps": "x" * 1000})
    assert len(str(caught.value)) < 200


def test_other_types_are_read_as_strictly() -> None:
    assert schema.check(list[int], [1, 2]) == ([1, 2], [])
    value, (problem,) = schema.check(dict[str, Inner], {"a": {"low": "a"}})
    assert value is None
    assert str(problem.within("outside")) == "outside.a.low = 'a': should be a valid number"
