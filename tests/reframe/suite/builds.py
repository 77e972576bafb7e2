import os

import reframe as rfm
import reframe.utility.sanity as sn


class Built(rfm.RegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = "src"
    build_system = "Make"
    executable = "./hello"
    executable_opts = ["here"]

    @sanity_function
    def greeted(self):
        return sn.assert_found(r"^hello from here, 1 arguments$", self.stdout)


@rfm.simple_test
class BuiltHere(Built):
    """Built where ReFrame runs; the program is shipped."""


@rfm.simple_test
class BuiltThere(Built):
    """Built by a job; the program stays there, and comes here as well."""

    build_locally = False
    keep_files = ["hello"]

    @run_before("run")
    def look(self):
        assert os.access(os.path.join(self.stagedir, "hello"), os.X_OK)


@rfm.simple_test
class Renamed(Built):
    """Built by a job, and called otherwise before the next one."""

    build_locally = False
    executable = "./greet"

    @run_before("run")
    def rename(self):
        os.rename(os.path.join(self.stagedir, "hello"), os.path.join(self.stagedir, "greet"))


@rfm.simple_test
class BuildFails(Built):
    """A build job with an exit code."""

    build_locally = False
    prebuild_cmds = ["echo 'int main(void) { return }' > hello.c"]


@rfm.simple_test
class CompileOnly(rfm.CompileOnlyRegressionTest):
    """Nothing but a build job."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = "src"
    build_system = "Make"
    build_locally = False
    postbuild_cmds = ["./hello build"]

    @sanity_function
    def ran(self):
        return sn.assert_found(r"hello from build, 1 arguments", self.stdout)


@rfm.simple_test
class SingleSource(rfm.RegressionTest):
    """One source file, compiled by a job."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = "src"
    sourcepath = "hello.c"
    build_locally = False
    executable_opts = ["a", "b"]

    @sanity_function
    def two(self):
        return sn.assert_found(r"^hello from a, 2 arguments$", self.stdout)


@rfm.simple_test
class LocalTest(Built):
    """A test that has nothing to do with the cluster."""

    local = True
