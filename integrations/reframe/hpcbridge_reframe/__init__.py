"""ReFrame scheduler backend of hpcbridge."""
