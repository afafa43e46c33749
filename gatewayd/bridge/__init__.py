"""The bridge: the process between routers and replicas; a loopback port stands for a replica."""
