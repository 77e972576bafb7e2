"""`hpcbridge run`, `attach` and `collect`: one job in the foreground, from its files to its results.

ci          which CI service this is, and what tells its jobs apart
reporting   how each service wants sections, masks, outputs and summaries
masking     secrets in a stream of bytes
handle      the file that stands for a run, and the records of runs that have not ended
moving      files there, results back
following   a job from the queue to its last byte
interrupts  what SIGINT and SIGTERM do
course      all of it, in order
"""
