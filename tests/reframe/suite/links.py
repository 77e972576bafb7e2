import os

import reframe as rfm
import reframe.utility.sanity as sn


@rfm.simple_test
class ReadonlyFiles(rfm.RunOnlyRegressionTest):
    """Files and directories that ReFrame links instead of copying, by absolute links."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = "src"
    readonly_files = ["data", "tool.sh"]
    executable = "./tool.sh"

    @sanity_function
    def read(self):
        return sn.all(
            [
                sn.assert_found(r"^first\nsecond$", self.stdout),
                sn.assert_true(os.path.islink(os.path.join(self.stagedir, "data"))),
                sn.assert_true(os.path.islink(os.path.join(self.stagedir, "tool.sh"))),
            ]
        )


@rfm.simple_test
class Links(rfm.RunOnlyRegressionTest):
    """Absolute and relative links, of the system, dangling, and some that the job makes."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    sourcesdir = "src"
    executable = "bash"
    executable_opts = [
        "-c",
        '"cat absolute relative up/back; readlink shell dangling; ln -s data/table.txt made; ln -s $PWD/data made_abs"',
    ]

    @run_after("setup")
    def remember(self):
        self.made = False

    @run_before("run")
    def make_links(self):
        for name, target in {
            "absolute": os.path.join(self.stagedir, "data", "table.txt"),
            "relative": "data/table.txt",
            "shell": "/bin/sh",
            "dangling": "nowhere",
        }.items():
            os.symlink(target, os.path.join(self.stagedir, name))
        os.mkdir(os.path.join(self.stagedir, "up"))
        os.symlink("../relative", os.path.join(self.stagedir, "up", "back"))

    @sanity_function
    def followed(self):
        made = os.path.join(self.stagedir, "made")
        absolute = os.path.join(self.stagedir, "made_abs")
        return sn.all(
            [
                sn.assert_eq(sn.count(sn.extractall("^second$", self.stdout)), 3),
                sn.assert_found(r"^/bin/sh\nnowhere$", self.stdout),
                sn.assert_eq(os.readlink(made), "data/table.txt"),
                sn.assert_eq(os.readlink(absolute), os.path.join(self.stagedir, "data")),
            ]
        )
