"""The pruned model in a form that other software loads."""
