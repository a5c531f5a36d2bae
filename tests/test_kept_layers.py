"""Fields that speak of single layers go with their layers."""

from __future__ import annotations

from effcompress.kept_layers import kept_layers, per_layer

LISTS = {"layer_types": ["a", "b", "a"], "eos_token_id": [1, 2, 3], "time_step_limit": [0, 1, 2]}


def test_lists_keep_the_entries_of_the_layers_that_stay() -> None:
    config = {"num_hidden_layers": 3, **LISTS, "intermediate_size": [8, 9, 10]}
    found = kept_layers(config, (0, 2))
    assert found == {"layer_types": ["a", "a"], "intermediate_size": [8, 10]}


def test_a_list_that_is_as_long_by_chance_is_left_alone() -> None:
    assert [name for name, value in LISTS.items() if per_layer(name, value, 3)] == ["layer_types"]
    assert not per_layer("layer_types", ["a", "b"], 3)


def test_counts_of_first_and_last_layers_and_lists_of_numbers() -> None:
    config = {"n_layer": 5, "first_k_dense_replace": 2, "num_kv_shared_layers": 2}
    config |= {"mlp_only_layers": [0, 3]}
    found = kept_layers(config, (1, 3, 4))
    assert found == {
        "first_k_dense_replace": 1,
        "num_kv_shared_layers": 2,
        "mlp_only_layers": [1],
    }


def test_values_of_single_layers_move_with_them() -> None:
    config = {"num_hidden_layers": 12, "per_layer_config": {"03": {"head_dim": 4}, "11": {"x": 1}}}
    assert kept_layers(config, (2, 3, 11)) == {
        "per_layer_config": {1: {"head_dim": 4}, 2: {"x": 1}}
    }
