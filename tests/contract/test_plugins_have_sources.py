"""Every plugin says where it is from and what it does."""

from __future__ import annotations

from pathlib import Path

import effcompress
from effcompress.registry import REGISTRY

ROOT = str(Path(effcompress.__file__).parent)


def test_every_plugin_has_a_paper_and_a_sentence() -> None:
    # Those of recipes that other tests loaded in this process are theirs.
    plugins = [plugin for plugin in REGISTRY.all() if plugin.where.startswith(ROOT)]
    assert len(plugins) >= 14
    for plugin in plugins:
        assert plugin.paper, plugin.name
        assert len(plugin.summary) > 10, plugin.name
