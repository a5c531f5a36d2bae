"""Every plugin says where it is from and what it does."""

from __future__ import annotations

from effcompress.registry import REGISTRY


def test_every_plugin_has_a_paper_and_a_sentence() -> None:
    plugins = REGISTRY.all()
    assert len(plugins) >= 14
    for plugin in plugins:
        assert plugin.paper, plugin.name
        assert len(plugin.summary) > 10, plugin.name
