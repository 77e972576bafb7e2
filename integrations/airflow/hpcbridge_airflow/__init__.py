"""Airflow provider of hpcbridge."""
