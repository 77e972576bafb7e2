"""A real Slurm of the sandbox's own: its daemons, and the commands that FirecREST gives it."""
