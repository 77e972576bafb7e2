"""The cluster's scheduler: a queue of our own (``local``) or a real Slurm (``slurm``), behind one protocol (``base``)."""
