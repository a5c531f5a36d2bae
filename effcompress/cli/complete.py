"""What a shell completes (``effcompress --install-completion``). Files are the shell's own."""

from collections.abc import Iterator


def complete_kind(incomplete: str) -> list[str]:
    """Returns the kinds of plugins that begin so."""
    from effcompress.injectable import INPUTS

    return [kind for kind in INPUTS if kind.startswith(incomplete)]


def complete_plugin(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yields names of plugins that begin so, with what they do; as KIND/NAME where kinds share a
    name, or once a kind was typed.
    """
    from effcompress.registry import REGISTRY

    everything = REGISTRY.all()
    names = [plugin.name for plugin in everything]
    for plugin in everything:
        whole = "/" in incomplete or names.count(plugin.name) > 1
        shown = f"{plugin.kind}/{plugin.name}" if whole else plugin.name
        if shown.startswith(incomplete):
            yield shown, plugin.summary
