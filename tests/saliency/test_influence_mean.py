"""The mean over cuts that selectors are told of."""

from __future__ import annotations

import pytest

from effcompress.saliency.influence import InfluenceMean


def test_a_new_stage_begins_anew() -> None:
    mean = InfluenceMean()
    for stage, heard in ((1, (1.0, 3.0)), (1, (3.0, 5.0)), (2, (5.0, 1.0))):
        mean.begin(stage, {"ffn.0": 10 * stage})
        mean.add({"layer.0": heard[0], "layer.1": heard[1], "attention_block.0": 9.0})
        if heard[0] == 3.0:
            assert mean.normalised() == {0: -1.0, 1: 1.0} and mean.begun == {"ffn.0": 10}
    assert mean.normalised() == {0: 1.0, 1: -1.0} and mean.begun == {"ffn.0": 20}


def test_it_is_read_back_also_from_older_checkpoints() -> None:
    mean, again, old = InfluenceMean(), InfluenceMean(), InfluenceMean()
    for values in ((0.1, 0.4, 0.2), (0.3, 0.1, 0.2)):
        mean.begin(0, {"ffn.0": 7})
        mean.add({f"layer.{i}": value for i, value in enumerate(values)})
    again.load_state_dict(mean.state_dict())
    assert again.normalised() == mean.normalised() and again.begun == mean.begun == {}
    old.load_state_dict({"0": [0.4, 2], "1": [0.5, 2], "2": [0.4, 2]})
    assert old.normalised() == pytest.approx(mean.normalised())
    mean.begin(2, {"ffn.0": 7})
    mean.add({"layer.0": 0.3, "layer.1": 0.1})
    again.load_state_dict(mean.state_dict())
    again.begin(2, {"ffn.0": 5})  # the same stage: nothing begins
    assert again.begun == {"ffn.0": 7} and again.normalised() == mean.normalised() != {}
