import os

import reframe as rfm
import reframe.utility.sanity as sn


@rfm.simple_test
class Hello(rfm.RunOnlyRegressionTest):
    """The least that a test can be, with commands around it."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "echo"
    executable_opts = ["hello", "world"]
    prerun_cmds = ["echo before > before.txt", "printf '%s\\n' \"$PWD\" > where.txt"]
    postrun_cmds = ["echo after", "cat before.txt"]
    keep_files = ["before.txt"]

    @sanity_function
    def said_all(self):
        here = sn.extractsingle(r"^(.*)$", "where.txt", 1)
        return sn.all(
            [
                sn.assert_found(r"^hello world$", self.stdout),
                sn.assert_found(r"^after\nbefore$", self.stdout),
                sn.assert_eq(here, self.stagedir),
                sn.assert_eq(sn.count(sn.extractall(".", self.stderr)), 0),
            ]
        )


@rfm.simple_test
class Performance(rfm.RunOnlyRegressionTest):
    """Figures from an output file of the job's own."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "bash"
    executable_opts = ["-c", '"mkdir -p out/deep; echo bandwidth: 42.5 GB/s > out/deep/figures.txt"']
    reference = {"*": {"bandwidth": (42.0, -0.1, 0.1, "GB/s")}}
    sanity_patterns = sn.assert_true(1)
    keep_files = ["out", "*.txt"]

    @performance_function("GB/s")
    def bandwidth(self):
        return sn.extractsingle(r"bandwidth: (\S+)", "out/deep/figures.txt", 1, float)


@rfm.simple_test
class TooSlow(Performance):
    """Fails in the performance stage."""

    reference = {"*": {"bandwidth": (100.0, -0.1, 0.1, "GB/s")}}


@rfm.simple_test
class Wrong(rfm.RunOnlyRegressionTest):
    """Fails in the sanity stage."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "echo"
    executable_opts = ["something", "else"]

    @sanity_function
    def never(self):
        return sn.assert_found("what was expected", self.stdout, msg="it said something else")


@rfm.simple_test
class ExitCode(rfm.RunOnlyRegressionTest):
    """A job that fails, and a test that looks at its exit code."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "exit 7; echo"

    @sanity_function
    def seven(self):
        return sn.assert_eq(self.job.exitcode, 7)


@rfm.simple_test
class TimesOut(rfm.RunOnlyRegressionTest):
    """Runs past its time limit; what it has said until then is there."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    time_limit = "3s"
    executable = "echo started; sleep 300"
    tags = {"slow"}

    @sanity_function
    def was_ended(self):
        return sn.all([sn.assert_found("started", self.stdout), sn.assert_in("TIMEOUT", [self.job.state])])


@rfm.simple_test
class Refused(rfm.RunOnlyRegressionTest):
    """The scheduler does not take it."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "true"
    sanity_patterns = sn.assert_true(1)

    @run_before("run")
    def ask_too_much(self):
        self.job.options = ["--partition=no-such-partition"]


@rfm.simple_test
class ArrayJob(rfm.RunOnlyRegressionTest):
    """A job array, whose outputs are merged."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = 'echo "task $SLURM_ARRAY_TASK_ID"'

    @run_before("run")
    def make_array(self):
        self.job.options = ["--array=0-2"]

    @sanity_function
    def every_task(self):
        return sn.assert_eq(sn.sorted(sn.extractall(r"^task (\d+)$", self.stdout, 1, int)), [0, 1, 2])


@rfm.simple_test
class Skipped(rfm.RunOnlyRegressionTest):
    """Skips itself after setup."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "true"
    sanity_patterns = sn.assert_true(1)

    @run_after("setup")
    def not_today(self):
        self.skip("not today")


@rfm.simple_test
class Environment(rfm.RunOnlyRegressionTest):
    """Variables of the test, with characters that shells mind."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    env_vars = {"PLAIN": "value", "QUOTED": "'a b, c|d'"}
    executable = 'echo "$PLAIN/$QUOTED"'

    @sanity_function
    def arrived(self):
        return sn.assert_found(r"^value/a b, c\|d$", self.stdout)


@rfm.simple_test
class ManyFiles(rfm.RunOnlyRegressionTest):
    """Leaves more files than are fetched one by one, and names that shells mind."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "for i in $(seq 30); do echo $i > part.$i; done; echo odd > 'a b [c] *.txt'; true"

    @sanity_function
    def all_there(self):
        parts = [int(open(os.path.join(self.stagedir, f"part.{i}")).read()) for i in range(1, 31)]
        odd = open(os.path.join(self.stagedir, "a b [c] *.txt")).read()
        return sn.all([sn.assert_eq(parts, list(range(1, 31))), sn.assert_eq(odd, "odd\n")])


@rfm.simple_test
class Flexible(rfm.RunOnlyRegressionTest):
    """As many tasks as the cluster has room for."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    num_tasks = 0
    num_tasks_per_node = 2
    executable = "true"

    @sanity_function
    def all_nodes(self):
        return sn.assert_eq(self.num_tasks, 2)


@rfm.simple_test
class FlexibleNowhere(rfm.RunOnlyRegressionTest):
    """No node has what it asks for."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    num_tasks = 0
    num_tasks_per_node = 2
    executable = "true"
    sanity_patterns = sn.assert_true(1)

    @run_before("run")
    def ask_too_much(self):
        self.job.options = ["--constraint=no-such-feature"]
