"""Files between this machine and a cluster: `put_file` and `get_file`."""
