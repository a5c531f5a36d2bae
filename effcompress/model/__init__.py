"""The source model: where it is, how it gets here, how it is opened. The only door to
transformers, tokenizers, gguf and the Hugging Face Hub.

- ``source.items``, ``source.config_of``: what a recipe needs and what is known of it already;
  they never import torch.
- ``fetch.fetch``: gets it onto this machine, as a Hugging Face folder.
- ``load.load``: opens it; ``load.skeleton``: the architecture alone, without weights.
- ``tokenizer``: text to tokens. ``families``: what the engine must know of an architecture.

Nothing is imported here, so that importing one of them costs no more than that one.
"""
