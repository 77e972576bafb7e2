import os

import reframe as rfm
import reframe.utility.sanity as sn
import reframe.utility.udeps as udeps


class Fetched(rfm.RunOnlyRegressionTest):
    """Session scope: runs once, for everybody."""

    sourcesdir = None
    executable = "echo"
    executable_opts = ["content", ">", "fetched.txt"]

    @sanity_function
    def there(self):
        return sn.path_isfile(os.path.join(self.stagedir, "fetched.txt"))


class BuiltOnce(rfm.CompileOnlyRegressionTest):
    """Environment scope, built by a job."""

    sourcesdir = "src"
    build_system = "Make"
    build_locally = False
    fetched = fixture(Fetched, scope="session")

    @run_before("compile")
    def take_the_content(self):
        self.prebuild_cmds = [f"cp {self.fetched.stagedir}/fetched.txt ."]

    @sanity_function
    def there(self):
        return sn.path_isfile(os.path.join(self.stagedir, "hello"))


class BuiltOnceHere(rfm.CompileOnlyRegressionTest):
    """Environment scope, built where ReFrame runs: no job brings it to the cluster."""

    sourcesdir = "src"
    build_system = "Make"

    @sanity_function
    def there(self):
        return sn.path_isfile(os.path.join(self.stagedir, "hello"))


class Prepared(rfm.RunOnlyRegressionTest):
    """Partition scope, run where ReFrame runs."""

    sourcesdir = None
    local = True
    executable = "echo"
    executable_opts = ["prepared", ">", "prepared.txt"]
    sanity_patterns = sn.assert_true(1)


class OfTheTest(rfm.RunOnlyRegressionTest):
    """Test scope."""

    sourcesdir = None
    executable = "echo"
    executable_opts = ["mine", ">", "mine.txt"]
    sanity_patterns = sn.assert_true(1)


@rfm.simple_test
class UsesFixtures(rfm.RunOnlyRegressionTest):
    """Names the stage directories of fixtures of all scopes by their absolute paths."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    who = parameter(["one", "two", "three"])
    fetched = fixture(Fetched, scope="session")
    built = fixture(BuiltOnce, scope="environment")
    here = fixture(BuiltOnceHere, scope="environment")
    prepared = fixture(Prepared, scope="partition")
    mine = fixture(OfTheTest, scope="test")

    @run_after("setup")
    def use_them(self):
        self.executable = os.path.join(self.built.stagedir, "hello")
        self.executable_opts = [self.who]
        self.prerun_cmds = [
            f"cat {self.fetched.stagedir}/fetched.txt {self.mine.stagedir}/mine.txt",
            f"cat {self.prepared.stagedir}/prepared.txt",
            f"{self.here.stagedir}/hello prerun-{self.who}",
        ]

    @sanity_function
    def all_spoke(self):
        return sn.all(
            [
                sn.assert_found(r"^content\nmine\nprepared$", self.stdout),
                sn.assert_found(rf"^hello from prerun-{self.who}, 1", self.stdout),
                sn.assert_found(rf"^hello from {self.who}, 1", self.stdout),
            ]
        )


@rfm.simple_test
class First(rfm.RunOnlyRegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "echo"
    executable_opts = ["result", ">", "result.txt"]
    sanity_patterns = sn.assert_true(1)


@rfm.simple_test
class Second(rfm.RunOnlyRegressionTest):
    """Depends on another test, and copies from its stage directory."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "cat"
    executable_opts = ["result.txt"]

    @run_after("init")
    def after_the_first(self):
        self.depends_on("First", udeps.by_env)

    @require_deps
    def take(self, First):
        self.prerun_cmds = [f"cp {First().stagedir}/result.txt ."]

    @sanity_function
    def same(self):
        return sn.assert_found("^result$", self.stdout)


@rfm.simple_test
class Third(rfm.RunOnlyRegressionTest):
    """Takes what another test has made as its own sources."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    executable = "cat"
    executable_opts = ["result.txt"]

    @run_after("init")
    def after_the_first(self):
        self.depends_on("First", udeps.by_env)

    @require_deps
    def take(self, First):
        self.sourcesdir = First().stagedir

    @sanity_function
    def same(self):
        return sn.assert_found("^result$", self.stdout)


@rfm.simple_test
class AfterAFailure(rfm.RunOnlyRegressionTest):
    """Is not run, because what it depends on fails."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "true"
    sanity_patterns = sn.assert_true(1)

    @run_after("init")
    def after_the_wrong(self):
        self.depends_on("Fails", udeps.by_env)


@rfm.simple_test
class Fails(rfm.RunOnlyRegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = None
    executable = "false"
    sanity_patterns = sn.assert_found("never", "rfm_job.out")
