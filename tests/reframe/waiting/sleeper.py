import os

import reframe as rfm
import reframe.utility.sanity as sn

COUNT, SECONDS = int(os.environ["SLEEPERS"]), os.environ["SLEEP"]
MARK, WORD = os.environ["MARK"], os.environ.get("WORD", "word")
OPTIONS = os.environ.get("OPTIONS", "").split()


@rfm.simple_test
class Sleeper(rfm.RunOnlyRegressionTest):
    """Writes down that it ran, in a place of its own on the cluster, and sleeps."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    number = parameter(range(COUNT))

    @run_before("run")
    def write_it_down(self):
        self.executable = (
            f'echo "$SLURM_JOB_ID" >> "$HOME/{MARK}-{self.number}"; echo {WORD}; sleep {SECONDS}; echo done'
        )
        self.job.options = OPTIONS
        if "PENDING" in os.environ:
            self.max_pending_time = os.environ["PENDING"]

    @sanity_function
    def ended(self):
        return sn.assert_found("done", self.stdout)
