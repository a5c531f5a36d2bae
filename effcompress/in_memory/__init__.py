"""Prunes a model that a script holds, in place: the parts of a run without recipe, text and folder.

``steps``: mini-groups, scores, choice and cut one by one; ``prune``: all of them in one call;
``pruner``: cuts within a training loop; ``save``: the proven folder of the result.
"""
