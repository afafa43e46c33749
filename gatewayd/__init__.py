"""gatewayd: an asynchronous reverse proxy in front of language-model replicas."""

__version__ = "0.1.0"
