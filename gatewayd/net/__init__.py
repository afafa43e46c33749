"""Input and output blocks without policy: sockets, channels, processes, shared tables."""
