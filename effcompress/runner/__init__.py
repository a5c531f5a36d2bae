"""Where the rooms meet. Nothing is imported here: `check` and `plan` must not wait for torch."""
