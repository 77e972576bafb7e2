"""The cluster's scheduler: our own queue (``local``) or a real Slurm (``slurm``), behind one protocol (``base``)."""
