"""The built-in demonstration: a small replica without a model, and a whole gateway around two."""
