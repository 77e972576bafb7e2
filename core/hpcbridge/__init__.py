"""hpcbridge: one job per intent on any HPC centre that speaks FirecREST v2."""
