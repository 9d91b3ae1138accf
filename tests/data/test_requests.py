"""Requests: good ones draw what they name, and each bad one is refused with what is allowed."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from unlearnlib.data import requests
from unlearnlib.data.requests import Classes, Group, Method, RequestError

LABELS = torch.arange(100) % 10
CLASS = {"mode": "coherent", "label": 3, "size": 4, "seed": 0}
ALL = {"mode": "random", "label": None, "size": 4, "seed": 0}


# --------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("given", [[7, 0], (7, 0), {0, 7}, np.array([7, 0]), iter([7, 0])])
def test_classes_are_sorted_whole_numbers(given: object):
    request = Classes(given)
    assert request.classes == (0, 7)
    assert all(type(value) is int for value in request.classes)
    assert request == Classes([0, 7]) and hash(request) == hash(Classes((0, 7)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], r"classes=\[\] is empty, so there is nothing to forget"),
        ([0, 0], r"classes=\[0, 0\] holds 0 more than once"),
        ([0, -1], "holds -1, below 0"),
        (-1, "classes=-1 is not a list"),
        ([1.5], "holds 1.5, not a whole number"),
        ([1.0], "holds 1.0, not a whole number"),
        ([float("nan")], "holds nan, not a whole number"),
        (1.5, "classes=1.5 is not a list"),
        ([True], "holds True, not a whole number"),
        (True, "classes=True is not a list"),
        (["0"], "holds '0', not a whole number"),
        ("0", "classes='0' is not a list"),
        (b"0", "classes=b'0' is not a list"),
        ({0: 1}, r"classes=\{0: 1\} is not a list"),
        ([[0]], r"holds \[0\], not a whole number"),
        ([None], "holds None, not a whole number"),
        (3, "classes=3 is not a list"),
        (None, "classes=None is not a list"),
    ],
)
def test_classes_that_nobody_can_serve_are_refused(given: object, says: str):
    with pytest.raises(RequestError, match=f"{says}.*give a list of different class numbers"):
        Classes(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([12], "classes holds 12, not one of the classes 0 to 9"),
        ([0, 10], "classes holds 10, not one of the classes 0 to 9"),
        (range(10), "is every class, so none is left to retain: give at most 9"),
    ],
)
def test_a_model_serves_some_of_its_own_classes(given: list[int], says: str):
    with pytest.raises(RequestError, match=says):
        Classes(given).check(10)
    request = Classes(range(9))
    assert request.check(10) is request


def test_names_say_what_goes():
    assert Classes([3]).name == "class_3"
    assert Classes([7, 1]).name == "classes_1_7"
    assert Group(**CLASS).name == "coherent-label3-4-seed0"
    assert Group(**ALL | {"seed": 2}).name == "random-all-4-seed2"
    assert (Group(**CLASS).source, Group(**ALL).source) == ("label3", "random")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_items_of_the_classes_go_and_the_others_stay(dtype: torch.dtype):
    labels, request = torch.tensor([3, 0, 9, 3, 1, 0], dtype=dtype), Classes([0, 3])
    assert request.mask(labels).tolist() == [True, True, False, True, False, True]
    assert request.positions(labels).tolist() == [0, 1, 3, 5]
    assert request.retained(5) == [1, 2, 4]


@pytest.mark.parametrize("labels", [[1, 2, 2], [0, 3, 0], []])
def test_items_of_one_kind_alone_are_refused(labels: list[int]):
    gone = sum(label in (0, 3) for label in labels)
    with pytest.raises(RequestError, match=f"classes_0_3: {gone} of {len(labels)} items .*others"):
        Classes([0, 3]).positions(torch.tensor(labels, dtype=torch.int64))


# ---------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("given", [CLASS, ALL])
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mode": "coherant"}, r"mode='coherant': choose one of \['coherent', 'random'\]"),
        ({"mode": None}, "mode=None: choose one of"),
        ({"size": 0}, "size=0: give a whole number from 1"),
        ({"size": -1}, "size=-1: give a whole number from 1"),
        ({"size": 1.5}, "size=1.5: give"),
        ({"size": 4.0}, "size=4.0: give"),
        ({"size": True}, "size=True: give"),
        ({"size": "4"}, "size='4': give"),
        ({"size": None}, "size=None: give"),
        ({"seed": -1}, "seed=-1: give a whole number from 0"),
        ({"seed": 0.5}, "seed=0.5: give"),
        ({"seed": True}, "seed=True: give"),
        ({"seed": None}, "seed=None: give"),
    ],
)
def test_a_group_that_nobody_can_draw_is_refused(given: dict, changed: dict, says: str):
    with pytest.raises(RequestError, match=says):
        Group(**given | changed)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (ALL | {"label": 3}, "mode='random' with label=3: .*a random one has None"),
        (CLASS | {"label": None}, "mode='coherent' with label=None: a coherent group has the num"),
        (CLASS | {"label": -1}, "label=-1: give a class number"),
        (CLASS | {"label": "0"}, "label='0': give a class number"),
        (CLASS | {"label": 1.5}, "label=1.5: give a class number"),
        (CLASS | {"label": True}, "label=True: give a class number"),
        (CLASS | {"label": [3]}, r"label=\[3\]: give a class number"),
    ],
)
def test_a_label_belongs_to_a_coherent_group_alone(given: dict, says: str):
    with pytest.raises(RequestError, match=says):
        Group(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (CLASS | {"size": 11}, "size=11 of 10 items of class 3: give 1 to 10"),
        (CLASS | {"label": 12}, "size=4 of no items of class 12: choose a class from 0 to 9"),
        (ALL | {"size": 100}, "size=100 of 100 items, and one of all must stay: give 1 to 99"),
        (ALL | {"size": 101}, "size=101 of 100 items, and one of all must stay: give 1 to 99"),
    ],
)
def test_a_group_larger_than_what_it_is_drawn_from_is_refused(given: dict, says: str):
    with pytest.raises(RequestError, match=says):
        Group(**given).positions(LABELS)
    with pytest.raises(RequestError, match=says):
        Group(**given).check([10] * 10)


def test_one_item_stays_where_there_is_one_class():
    group = Group("coherent", 0, 5)
    with pytest.raises(RequestError, match="5 of 5 items of class 0, and one of all must stay"):
        group.positions(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(RequestError, match="of no items of class 0"):
        group.positions(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(RequestError, match="of no items"):
        Group("random", None, 1).check([])


@pytest.mark.parametrize("given", [CLASS | {"size": 10}, ALL | {"size": 99}])
def test_a_group_may_be_a_whole_class_or_all_but_one(given: dict):
    group = Group(**given)
    assert group.check([10] * 10) is group
    assert len(group.positions(LABELS).unique()) == given["size"]


def drawn(given: dict, labels: Tensor = LABELS) -> list[int]:
    return Group(**given).positions(labels).tolist()


def test_a_coherent_group_is_of_its_class_and_a_random_one_of_all():
    assert set(LABELS[drawn(CLASS | {"size": 8})].tolist()) == {3}
    assert len(set(LABELS[drawn(ALL | {"size": 60})].tolist())) == 10


@pytest.mark.parametrize("given", [CLASS, ALL])
def test_a_draw_is_ascending_repeatable_and_follows_its_seed_alone(given: dict):
    found = drawn(given)
    assert found == sorted(set(found))
    torch.manual_seed(1)
    assert found == drawn(given)
    assert found != drawn(given | {"seed": 1})


@pytest.mark.parametrize("given", [CLASS, ALL])
def test_draws_of_one_seed_are_nested(given: dict):
    draws = [set(drawn(given | {"size": size})) for size in range(1, 11)]
    assert all(small < large for small, large in pairwise(draws))
    assert [len(draw) for draw in draws] == list(range(1, 11))


@pytest.mark.parametrize("given", [CLASS, ALL])
def test_every_member_is_as_likely_to_go(given: dict):
    counts = np.zeros(len(LABELS))
    for seed in range(600):
        counts[drawn(given | {"seed": seed})] += 1
    members = counts[(LABELS == 3).numpy()] if given["label"] is not None else counts
    assert counts.sum() == members.sum() == 2400
    assert chisquare(members).pvalue > 1e-3


# ---------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("given", "request_"),
    [
        ({"classes": [7, 1]}, Classes((1, 7))),
        (CLASS, Group("coherent", 3, 4, 0)),
        ({"mode": "random", "size": 5}, Group("random", None, 5, 0)),
        ({"mode": "coherent", "label": 0, "size": 5, "seed": 9}, Group("coherent", 0, 5, 9)),
    ],
)
def test_parameters_become_requests(given: dict, request_: requests.Request):
    before = dict(given)
    assert requests.parse(given) == request_
    assert given == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, r"with the keys \[\]: give classes alone, or mode, label, size and seed"),
        ({"class": [0]}, r"with the keys \['class'\]"),
        ({"classes": [0], "size": 3}, r"with the keys \['classes', 'size'\]"),
        ({"classes": [0], "seed": 3}, r"with the keys"),
        (CLASS | {"kind": "group"}, r"with the keys \[.*'kind'\]"),
        ({"mode": "random"}, r"with the keys \['mode'\]"),
        ({"size": 3}, r"with the keys \['size'\]"),
        ({1: 2, "a": 3}, r"with the keys \[1, 'a'\]"),
        ([0], r"is a mapping, not \[0\]: give classes alone"),
        ("0", "is a mapping, not '0'"),
        (None, "is a mapping, not None"),
        ({"classes": "0"}, "classes='0' is not a list"),
        ({"classes": []}, "is empty"),
        ({"mode": "random", "label": 2, "size": 3}, "a random one has None"),
        ({"mode": "coherent", "size": 3}, "mode='coherent' with label=None"),
    ],
)
def test_parameters_that_are_no_request_are_refused(given: object, says: str):
    with pytest.raises(RequestError, match=says):
        requests.parse(given)


def test_the_rest_is_what_stays():
    assert requests.rest(5, torch.tensor([1, 3])).tolist() == [0, 2, 4]
    group = Group(**ALL).positions(LABELS)
    stays = requests.rest(len(LABELS), group)
    assert torch.equal(torch.cat([group, stays]).sort().values, torch.arange(100))


# ------------------------------------------------------------------------------------- methods


def test_a_method_says_which_requests_it_serves_and_why_no_others():
    method = Method("m", "M", "zero_shot", "nothing", (Classes,), "takes classes")
    assert method.cannot(Classes([0])) is None
    assert method.cannot(Group(**ALL)) == "takes classes"
    everything = Method("n", "N", "data", "all items")
    assert everything.cannot(Group(**ALL)) is everything.cannot(Classes([0])) is None


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"m: family='zeroshot': choose one of .*'zero_shot'"):
        Method("m", "M", "zeroshot", "nothing")
