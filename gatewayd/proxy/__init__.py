"""The data plane: one worker process carries clients' requests to replicas and routers."""
