"""The control plane: one process that owns everything slow and touches no tenant's byte."""
