"""The ways of docs/index.md, typed as the pages say, in an empty home, on tiny models."""
