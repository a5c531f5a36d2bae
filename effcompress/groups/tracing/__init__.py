"""Named axes of an architecture that is not declared: traced, then proven on a small model.

``trace.trace_family`` is the entry. It starts a process that builds small random models
(``search``), asks torch-pruning what is coupled (``graph``), writes the couplings as axes
(``propose``, ``draft``) with the sizes that modules keep (``anatomy``), and keeps what ``verify``
proves.
"""
