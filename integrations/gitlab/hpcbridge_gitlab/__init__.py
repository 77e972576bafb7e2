"""GitLab custom executor of hpcbridge."""
