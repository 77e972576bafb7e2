"""Files that stay on the cluster: listed, found by pattern, read, copied, moved, removed and measured.

What one quick command of the server can do is asked of the server. The rest (copies, moves, whatever takes longer than
the server's five seconds, names that no request can carry) is one small keyed job of our own for many paths: the
server's jobs for the same end as COMPLETED when they failed.
"""
