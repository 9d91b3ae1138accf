"""Seeds follow from the root and the name, the same on every machine, and share nothing."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from unlearnlib.pipeline import seeds


@pytest.mark.parametrize(
    ("given", "seed"),
    [
        ((0,), 3_502_022_929),
        ((0, "group"), 759_046_041),
        ((1, "group"), 3_788_980_427),
        ((0, "first weights"), 1_372_450_163),
        ((7, "fold", 3), 1_307_729_478),
        ((-1, "α"), 4_057_505_093),
    ],
)
def test_known_values_stay(given: tuple, seed: int) -> None:
    assert seeds.derive(*given) == seed


def test_seeds_are_the_same_in_another_process() -> None:
    command = "from unlearnlib.pipeline import seeds; print(seeds.derive(3, 'a', 'b'))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert int(found.stdout) == seeds.derive(3, "a", "b")


def test_every_generator_takes_them() -> None:
    for seed in range(50):
        found = seeds.derive(seed, "x")
        assert 0 <= found < 2**32
        np.random.default_rng(found), np.random.RandomState(found)
        torch.Generator().manual_seed(found)


def test_names_cannot_be_mistaken_for_each_other() -> None:
    given = [
        *((0,), (1,), (0, ""), (0, "", ""), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab")),
        *((0, "a, b"), (0, 'a", "b'), (0, 1), (0, "1"), (1, 0), (0, 0, 1), (-1, "a"), (10, "a")),
    ]
    assert len({seeds.derive(*names) for names in given}) == len(given)


def test_neighbouring_seeds_are_unrelated() -> None:
    found = [seeds.derive(seed, name) for seed in range(1000) for name in ("a", "b")]
    assert len(set(found)) == len(found)
    bits = np.unpackbits(np.array(found, dtype=">u4").view(np.uint8)).reshape(-1, 32)
    # 2000 fair coins for each bit: five standard errors
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / len(found) ** 0.5
    differing = np.bitwise_xor(bits[:-2], bits[2:]).mean()
    assert abs(differing - 0.5) < 5 * 0.5 / bits.size**0.5


def test_streams_are_independent_of_each_other_and_of_the_global_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = seeds.stream(0, "a"), seeds.stream(0, "b")
    drawn = torch.randn(100, generator=first)
    assert torch.equal(torch.randn(100, generator=seeds.stream(0, "a")), drawn)
    others = torch.randn(100, generator=second)
    assert abs(torch.corrcoef(torch.stack([drawn, others]))[0, 1]) < 0.4
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_numbers_of_any_type_are_seeds_and_others_are_not() -> None:
    assert seeds.derive(np.int64(3), "a") == seeds.derive(3, "a")
    for seed in (0.5, 1.0, "1", None):
        with pytest.raises(TypeError):
            seeds.derive(seed, "a")
