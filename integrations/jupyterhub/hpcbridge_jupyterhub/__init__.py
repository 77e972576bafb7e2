"""JupyterHub spawner of hpcbridge."""
