"""From text to batches: read documents, hold some out, tokenise once into memory-mapped files, pack
into sequences, mix domains by weight.

``prepare`` makes a ``Corpus`` ready; a ``Stream`` of it gives training batches and can be resumed
anywhere; ``digest`` says which tokens they were; ``needs`` lists what a recipe fetches from the
hub.
"""

from effcompress.data.corpus import Corpus, needs, prepare
from effcompress.data.pack import digest
from effcompress.data.stream import Stream

__all__ = ["Corpus", "Stream", "digest", "needs", "prepare"]
