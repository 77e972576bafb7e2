import os

import reframe as rfm
import reframe.utility.sanity as sn

COUNT = int(os.environ.get("MANY_TESTS", "200"))


@rfm.simple_test
class Many(rfm.RunOnlyRegressionTest):
    """One of many, with an input of its own size."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = "src"
    number = parameter(range(COUNT))
    executable = "./work.sh"

    @run_after("setup")
    def give_it_its_number(self):
        self.executable_opts = [str(self.number)]

    @sanity_function
    def right(self):
        return sn.assert_found(rf"^result {self.number * 7}$", self.stdout)
