"""Tables of gated transfer, by hand on small histories."""

import math

import numpy as np
import pytest

from unlearnlib.zero_shot import transfers

NAN = math.nan
RESULTS = {
    "gkt-seed0": {
        "stop": 4,
        "history": {"accepted": [[1, 0, 2], [0, 0, 1]], "leak": [0.5, 0.0]},
    },
    "gkt-seed1": {
        "stop": 2,
        "history": {"accepted": [[0, 0, 0], [0, 0, 0]], "leak": [NAN, 0.25]},
    },
}


def test_shares_are_of_all_accepted_images_of_a_run():
    table = transfers.accepted_shares(RESULTS)
    assert table.loc["gkt-seed0"].tolist() == [25.0, 0.0, 75.0]
    assert table.loc["gkt-seed1"].isna().all()


def test_stops_are_listed_by_seed():
    table = transfers.stops(RESULTS, ["gkt"], [1, 0])
    assert table["gkt"].to_dict() == {1: 2, 0: 4}


def test_a_sign_is_smoothed_over_pseudo_batches():
    found = transfers.smoothed(RESULTS, "gkt", [0, 1], "leak", alpha=0.5)
    # adjusted weights 1 and 1/2: (0.5 / 2 + 0) / 1.5
    np.testing.assert_allclose(found, [[0.5, 1 / 6], [NAN, 0.25]])


def test_variants_of_the_entropy_criterion_are_named_by_it():
    found = transfers.entropy_variants("gkt", [1.0, 0.25])
    assert found == {
        "gkt_entropy_1": {"entropy_limit": 1.0},
        "gkt_entropy_0.25": {"entropy_limit": 0.25},
    }


def test_a_run_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="gkt-seed7"):
        transfers.stops(RESULTS, ["gkt"], [7])
