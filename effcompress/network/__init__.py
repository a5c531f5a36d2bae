"""A configuration or a module, together with its named axes."""
