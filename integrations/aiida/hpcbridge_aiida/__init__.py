"""AiiDA transport and scheduler of hpcbridge."""
