"""A queue of the sandbox's own: Slurm's directives, states, reasons, exit codes and rows without a Slurm."""
