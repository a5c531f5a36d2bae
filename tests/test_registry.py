"""Plugins: the signature is the contract, and every mistake has an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from effcompress.errors import PluginError
from effcompress.registry import REGISTRY, Bound, Registry


def named(weight, grad, *, power: float = 1.0, kind: str = "a"):
    """Says something. And more."""
    return weight * grad * power


def test_the_signature_gives_needs_and_knobs() -> None:
    plugin = Registry().add("criterion", "named", named, "arXiv:1")
    assert plugin.needs == ("weight", "grad")
    assert {k: (v.annotation, v.default) for k, v in plugin.knobs.items()} == {
        "power": (float, 1.0),
        "kind": (str, "a"),
    }
    assert plugin.summary == "Says something. And more."
    assert Bound(plugin, {"power": 3.0})(weight=2.0, grad=5.0, hess="not wanted") == 30.0


def test_an_input_nobody_injects_is_refused_at_import() -> None:
    def bad(wieght):
        return wieght

    with pytest.raises(PluginError, match="cannot inject 'wieght'") as error:
        Registry().add("criterion", "bad", bad, "new")
    assert "did you mean 'weight'?" in str(error.value)
    assert error.value.where and Path(__file__).name in error.value.where


def test_a_knob_needs_a_type() -> None:
    def bad(weight, *, alpha=1):
        return weight

    with pytest.raises(PluginError, match="knob 'alpha' has no type"):
        Registry().add("criterion", "bad", bad, "new")


def test_a_clash_names_both_places() -> None:
    registry = Registry()
    registry.add("criterion", "named", named, "new")

    def other(weight):
        return weight

    with pytest.raises(PluginError, match=r"exists already, from .*test_registry") as error:
        registry.add("criterion", "named", other, "new")
    assert error.value.where != registry.get("criterion", "named").where
    registry.add("criterion", "named", named, "new")  # the same function again is no clash
    registry.add("hessian", "named", lambda grad: grad, "new")  # another kind is no clash


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PluginError, match="did you mean 'taylor'"):
        REGISTRY.get("criterion", "taylr")


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("import torch\nx = 1 / 0\n", 2, "ZeroDivisionError"),
        ("def f(:\n", 1, "SyntaxError"),
        ("import nowhere_to_be_found\n", 1, "ModuleNotFoundError"),
        ("raise SystemExit(3)\n", 1, "SystemExit"),
    ],
)
def test_a_file_that_fails_to_import_names_file_and_line(
    tmp_path: Path, source: str, line: int, words: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(PluginError, match=words) as error:
        Registry().load_file(file)
    assert error.value.where == f"{file}:{line}"
    assert len(str(error.value).splitlines()) <= 3


def test_an_entry_point_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    from effcompress import registry

    class Entry:
        name, value = "broken", "broken.module"

        def load(self):
            raise ImportError("no such thing")

    fresh = Registry()
    monkeypatch.setattr(registry, "REGISTRY", fresh)
    monkeypatch.setattr(registry, "BUILTIN_MODULES", ())
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()])
    with pytest.raises(PluginError, match=r"broken = broken\.module"):
        fresh.all()


def test_gradients_of_masks_stand_alone() -> None:
    def both(weight, mask_grad):
        return weight, mask_grad

    with pytest.raises(PluginError, match="mask_grad is per mini-group, weight per weight"):
        Registry().add("criterion", "both", both, "new")


def tuned(weight, gram, *, damp: float = 0.5, power: float = 1.0):
    """Has a knob that may be chosen on held-out text."""
    return weight * damp * power


def test_a_knob_that_is_chosen_on_held_out_text() -> None:
    """In a recipe it is ``auto`` by default; the function itself never gets that."""
    plugin = Registry().add("refit", "tuned", tuned, "new", tries={"damp": (0.1, 1)})
    knobs = {name: knob.default for name, knob in plugin.knobs.items()}
    assert knobs == {"damp": "auto", "power": 1.0}
    candidates = Bound(plugin, knobs).candidates
    assert [b.knobs for b in candidates] == [{"damp": 0.1, "power": 1.0}, {"damp": 1, "power": 1.0}]
    assert [b(weight=2.0, gram=None) for b in candidates] == [0.2, 2.0]
    assert [b.tried for b in candidates] == [{"damp": 0.1}, {"damp": 1.0}]
    fixed = Bound(plugin, {**knobs, "damp": 0.7})
    assert (fixed.candidates, fixed.tried) == ([], {"damp": 0.7})
    assert not Bound(Registry().add("refit", "plain", tuned, "new"), {"damp": 0.7}).candidates


def test_every_combination_of_two_such_knobs_is_tried() -> None:
    tries = {"damp": (0.1, 1.0), "power": (1.0, 2.0)}
    plugin = Registry().add("refit", "tuned", tuned, "new", tries=tries)
    found = [
        tuple(b.knobs.values()) for b in Bound(plugin, dict.fromkeys(tries, "auto")).candidates
    ]
    assert found == [(0.1, 1.0), (0.1, 2.0), (1.0, 1.0), (1.0, 2.0)]


@pytest.mark.parametrize(
    ("tries", "said", "fix"),
    [
        ({"dampp": (0.1,)}, "tries values of 'dampp', which is no knob of it", "'damp'"),
        ({"damp": ()}, "needs numbers from 0", "tries={'damp': (0.1, 1.0)}"),
        ({"damp": (0.1, -1.0)}, "needs numbers from 0", "tries={'damp'"),
        ({"damp": ("auto",)}, "needs numbers from 0", "tries={'damp'"),
    ],
)
def test_values_to_try_are_those_of_a_knob(tries: dict, said: str, fix: str) -> None:
    with pytest.raises(PluginError, match=said) as error:
        Registry().add("refit", "tuned", tuned, "new", tries=tries)
    assert fix in str(error.value)


def peak(x, state):
    """The largest input so far."""
    return x if state is None else x.maximum(state)


def careful(weight, peak, *, careful: bool = False, level: float = 1.0):
    """Takes a statistic that only one of its ways needs."""
    return weight if peak is None else weight * peak


def test_a_statistic_that_only_one_way_needs() -> None:
    registry = Registry()
    registry.add("statistic", "peak", peak, "new")
    only = {"peak": "careful"}
    plugin = registry.add("criterion", "careful", careful, "new", only_where=only)
    assert list(plugin.knowing({"careful": True, "level": 1.0}).of_inputs) == ["peak"]
    rest = plugin.knowing({"careful": False, "level": 1.0})
    assert rest.of_inputs == {} and rest.needs == ("weight", "peak") and not rest.reads_inputs


@pytest.mark.parametrize(
    ("only_where", "said", "fix"),
    [
        ({"peek": "careful"}, "'peek' only with a knob, which is no statistic", "'peak'"),
        ({"weight": "careful"}, "'weight' only with a knob, which is no statistic", ""),
        ({"peak": "cautious"}, "'cautious', which is no knob of type bool", ""),
        ({"peak": "level"}, "'level', which is no knob of type bool", "'careful'"),
    ],
)
def test_a_condition_that_can_decide_nothing(
    only_where: dict[str, str], said: str, fix: str
) -> None:
    registry = Registry()
    registry.add("statistic", "peak", peak, "new")
    with pytest.raises(PluginError, match=said) as error:
        registry.add("criterion", "careful", careful, "new", only_where=only_where)
    assert fix in str(error.value)
