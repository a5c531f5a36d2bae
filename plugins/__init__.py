"""Published methods as plugins of effcompress: one file per method, found by name.

They use the public names of `effcompress` only, as a user's own plugins do, and are registered by
the same entry-point group, `effcompress.plugins` (pyproject.toml).
"""
