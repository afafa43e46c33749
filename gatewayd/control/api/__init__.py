"""The admin address: registry calls, status, metrics."""
