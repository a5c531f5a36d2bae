"""Named axes of an architecture that is not declared, proposed by tracing."""
