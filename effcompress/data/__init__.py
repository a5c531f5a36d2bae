"""From text to batches: read documents, hold some out, tokenise once into memory-mapped files, pack
into sequences, mix domains by weight.

``prepare`` returns a ``Corpus``; its ``Stream`` yields training batches and can be resumed at any
position; ``digest`` hashes token ids; ``needs`` lists the hub data sets of a recipe, ``preview``
reads the beginning of its files, ``to_tokenise`` says how much of them a run needs; ``written``
writes conversations.

In the order of the data: ``sources`` and ``chat`` (text), ``beginning`` (what `check` reads),
``tokens`` and ``folder`` (token cache), ``stream`` (sequences, order and mixture), ``corpus`` (all
of it); beside them ``scaling_law`` (losses that a mixture is held against).
"""

from effcompress.data.beginning import ToTokenise, conversations, preview, to_tokenise
from effcompress.data.chat import written
from effcompress.data.corpus import Corpus, needs, prepare
from effcompress.data.scaling_law import predicted
from effcompress.data.stream import Stream, digest

__all__ = [
    "Corpus",
    "Stream",
    "ToTokenise",
    "conversations",
    "digest",
    "needs",
    "predicted",
    "prepare",
    "preview",
    "to_tokenise",
    "written",
]
