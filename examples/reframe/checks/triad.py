"""How quickly does a node move memory? Compiled on the cluster, with the cluster's compiler."""

import reframe as rfm
import reframe.utility.sanity as sn


@rfm.simple_test
class Triad(rfm.RegressionTest):
    """a[i] = b[i] + s * c[i], the best of ten passes."""

    descr = "memory bandwidth"
    valid_systems = ["cluster:normal"]
    valid_prog_environs = ["gnu"]
    sourcepath = "triad.c"
    build_system = "SingleSource"
    build_locally = False
    size = parameter([1_000_000, 4_000_000])
    time_limit = "5m"
    reference = {"cluster:normal": {"bandwidth": (5.0, -0.9, None, "GB/s")}}

    @run_before("compile")
    def optimise(self):
        self.build_system.cflags = ["-O2"]

    @run_before("run")
    def choose_size(self):
        self.executable_opts = [str(self.size)]

    @sanity_function
    def right(self):
        return sn.assert_found(r"^solution validates$", self.stdout)

    @performance_function("GB/s")
    def bandwidth(self):
        return sn.extractsingle(r"^bandwidth: (\S+) GB/s$", self.stdout, 1, float)
