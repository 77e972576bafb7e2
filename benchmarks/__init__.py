"""hpcbridge beside pyfirecrest, measured in one run on one machine against the sandbox."""
