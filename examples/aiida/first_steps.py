"""A first calculation, a work chain and a shell command on a computer that hpcbridge reaches.

    python examples/aiida/first_steps.py daint

`daint` is the label of a computer that was set up as docs/aiida.md says. Nothing has to be installed over there but
bash and coreutils. Every process is run here and waited for; `engine.submit` instead of `engine.run_get_node` would
hand it to AiiDA's daemon.
"""

from __future__ import annotations

import sys
from typing import Any

from aiida import engine, load_profile, orm
from aiida.common.exceptions import NotExistent
from aiida.plugins import WorkflowFactory

OPTIONS = {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": 1}, "max_wallclock_seconds": 300}


def bash_on(computer: orm.Computer) -> orm.InstalledCode:
    """The code that adds two numbers with bash; made at the first call."""
    try:
        code = orm.load_code(f"add@{computer.label}")
    except NotExistent:
        code = orm.InstalledCode(
            label="add",
            computer=computer,
            filepath_executable="/bin/bash",
            default_calc_job_plugin="core.arithmetic.add",
        ).store()
    assert isinstance(code, orm.InstalledCode)
    return code


def first_calculation(computer: orm.Computer) -> orm.CalcJobNode:
    """One batch job that adds 2 and 3."""
    builder = bash_on(computer).get_builder()
    builder.x, builder.y = orm.Int(2), orm.Int(3)
    builder.metadata.options = OPTIONS
    results, node = engine.run_get_node(builder)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    print(f"2 + 3 = {results['sum'].value}, job {node.get_job_id()} in {node.get_remote_workdir()}")
    return node


def work_chain(computer: orm.Computer) -> Any:
    """A work chain whose second step is a batch job: (2 * 3) + 4."""
    inputs = {"x": orm.Int(2), "y": orm.Int(3), "z": orm.Int(4), "code": bash_on(computer)}
    results, node = engine.run_get_node(WorkflowFactory("core.arithmetic.multiply_add"), **inputs)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    print(f"2 * 3 + 4 = {results['result'].value}")
    return node


def shell_command(computer: orm.Computer) -> Any:
    """Any program by aiida-shell, with a file that goes there and one that comes back."""
    from aiida_shell import launch_shell_job

    results, node = launch_shell_job(
        "sort",
        arguments="--reverse {words} --output sorted.txt",
        nodes={"words": orm.SinglefileData.from_string("silicon\ncarbon\ngermanium\n", filename="words.txt")},
        outputs=["sorted.txt"],
        metadata={"computer": computer, "options": OPTIONS},
    )
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    print("sorted:", results["sorted_txt"].get_content().split())
    return node


def main(label: str) -> None:
    """Run all of it on the computer `label` of the default profile."""
    load_profile()
    computer = orm.load_computer(label)
    first_calculation(computer)
    work_chain(computer)
    shell_command(computer)


if __name__ == "__main__":
    main(sys.argv[1])
