"""Configuration -> family: the declared one, or one that was traced and proven.

Run as a program it is the process in which tracing happens.
"""

from __future__ import annotations

import functools
import json

from effcompress.errors import SourceError
from effcompress.model.families import family_of
from effcompress.model.source import is_known
from effcompress.types import Config, Family

SECONDS = 300.0
"""Most models answer in some seconds; most of that is starting the process."""


def family_for(config: Config, *, timeout: float = SECONDS) -> Family:
    """The family of a configuration. An architecture that is not declared is traced, which takes
    some seconds; the result is cached per configuration.

    Raises CoverageError as ``groups.tracing.trace.trace_family`` does; SourceError when
    transformers has no such architecture or the model cannot be built.
    """
    try:
        return family_of(config)
    except SourceError:
        if not is_known(str(config.get("model_type"))):
            raise
        return _traced(json.dumps(dict(config), sort_keys=True, default=str), timeout)


@functools.cache
def _traced(config: str, timeout: float) -> Family:
    # Late: what is declared is priced without torch.
    from effcompress.groups.tracing.trace import trace_family

    return trace_family(json.loads(config), entry="effcompress.network.family", timeout=timeout)


if __name__ == "__main__":
    from effcompress.groups.tracing.trace import serve
    from effcompress.model.small import build

    serve(build)
