"""Calculations of the tests; the daemon imports this module by its name (`support.aiida_calcs`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob, CalcJobProcessSpec, ToContext, WorkChain

SCRIPT = "job.sh"


class PlannedJob(CalcJob):
    """A shell script, and everything that a plan asks of the engine for it.

    `plan` may hold `copy` and `symlink` (lists of [path below the parent's folder, path here]), `retrieve` and
    `temporary` (as `retrieve_list` has them), and `must`: files without which the parser is not content. What the
    parser got to see is the output `seen`.
    """

    @classmethod
    def define(cls, spec: CalcJobProcessSpec) -> None:  # type: ignore[override]
        """Inputs, outputs and exit codes."""
        super().define(spec)
        spec.input("script", valid_type=orm.Str)
        spec.input("plan", valid_type=orm.Dict, required=False)
        spec.input("folder", valid_type=orm.FolderData, required=False)
        spec.input("file", valid_type=orm.SinglefileData, required=False)
        spec.input("parent", valid_type=orm.RemoteData, required=False)
        spec.output("seen", valid_type=orm.Dict)
        spec.exit_code(300, "ERROR_MISSING", message="files are missing: {names}")
        spec.inputs["metadata"]["options"]["resources"].default = lambda: {"num_machines": 1}

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write the script and pass the plan on."""
        plan = self.inputs.plan.get_dict() if "plan" in self.inputs else {}
        with folder.open(SCRIPT, "w") as handle:
            handle.write(self.inputs.script.value)
        code = CodeInfo()
        code.code_uuid = self.inputs.code.uuid
        code.cmdline_params = [SCRIPT]
        code.stdout_name = "stdout.txt"
        info = CalcInfo()
        info.codes_info = [code]
        info.retrieve_list = ["stdout.txt", *(_entry(item) for item in plan.get("retrieve", []))]
        info.retrieve_temporary_list = [_entry(item) for item in plan.get("temporary", [])]
        info.local_copy_list = []
        if "folder" in self.inputs:
            info.local_copy_list += [(self.inputs.folder.uuid, "", ""), (self.inputs.folder.uuid, "sub", "other")]
        if "file" in self.inputs:
            info.local_copy_list.append((self.inputs.file.uuid, self.inputs.file.filename, "deep/down/single.txt"))
        for key, name in (("copy", "remote_copy_list"), ("symlink", "remote_symlink_list")):
            info[name] = [self._from_parent(*item) for item in plan.get(key, [])]
        return info

    def _from_parent(self, source: str, target: str) -> tuple[str, str, str]:
        parent = self.inputs.parent
        return parent.computer.uuid, f"{parent.get_remote_path()}/{source}", target

    def parse_retrieved_output(self, retrieved_temporary_folder: str | None = None) -> Any:
        """Note what there is to parse, down to every text."""
        retrieved = self.node.outputs.retrieved.base.repository
        kept = {
            str(root / name): retrieved.get_object_content(str(root / name))
            for root, _, names in retrieved.walk()
            for name in names
            if not name.startswith("_")
        }
        temporary = Path(retrieved_temporary_folder or "/nonexistent")
        passing = {
            str(path.relative_to(temporary)): path.read_text() for path in temporary.rglob("*") if path.is_file()
        }
        self.out("seen", orm.Dict({"retrieved": kept, "temporary": passing}).store())
        missing = set(self.inputs.plan.get("must", [])) - set(kept) if "plan" in self.inputs else set()
        if missing and not self.node.exit_status:
            return self.exit_codes.ERROR_MISSING.format(names=", ".join(sorted(missing)))
        return None


def _entry(item: Any) -> Any:
    """A plain path, or the triple of a pattern."""
    return item if isinstance(item, str) else tuple(item)


PARENT_SCRIPT = """
mkdir -p out/aiida.save tmp
echo charge > out/aiida.save/charge.dat; echo wfc1 > out/a.wfc1; echo wfc2 > out/a.wfc2; ln -s a.wfc1 out/link
echo big > tmp/big
"""
CHILD_SCRIPT = "find -L out -type f | sort | xargs cat\n"


class RestartChain(WorkChain):
    """A calculation, and two that go on from its files: one by copies, one by links, as Quantum ESPRESSO does it."""

    @classmethod
    def define(cls, spec: Any) -> None:
        """Inputs, outputs and the outline."""
        super().define(spec)
        spec.input("code", valid_type=orm.AbstractCode)
        spec.input("options", valid_type=dict, non_db=True, default=dict)
        spec.output("parent", valid_type=orm.RemoteData)
        spec.output("copied", valid_type=orm.Dict)
        spec.output("linked", valid_type=orm.Dict)
        spec.exit_code(400, "ERROR_STEP", message="a step failed")
        spec.outline(cls.first, cls.again, cls.results)

    def _job(self, script: str, **more: Any) -> dict[str, Any]:
        options = {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": 1}, **self.inputs.options}
        return {"code": self.inputs.code, "script": orm.Str(script), "metadata": {"options": options}, **more}

    def first(self) -> Any:
        """The parent."""
        return ToContext(first=self.submit(PlannedJob, **self._job(PARENT_SCRIPT)))

    def again(self) -> Any:
        """Both children at once; files as a pattern, a directory by its name, into a directory that is made first."""
        if not self.ctx.first.is_finished_ok:
            return self.exit_codes.ERROR_STEP
        parent = self.ctx.first.outputs.remote_folder
        empty = orm.FolderData()
        empty.base.repository.put_object_from_bytes(b"", "out/keep")
        empty.base.repository.put_object_from_bytes(b"", "sub/keep")
        copies = {"copy": [["out/a.wfc*", "out"], ["out/aiida.save", "out/aiida.save"], ["missing", "out/missing"]]}
        links = {"symlink": [["out/a.wfc*", "out"], ["out/aiida.save", "out/aiida.save"]]}
        children = {
            name: self.submit(
                PlannedJob, **self._job(CHILD_SCRIPT, plan=orm.Dict(plan), parent=parent, folder=empty.clone())
            )
            for name, plan in (("copied", copies), ("linked", links))
        }
        return ToContext(**children)

    def results(self) -> Any:
        """What the children saw."""
        if not (self.ctx.copied.is_finished_ok and self.ctx.linked.is_finished_ok):
            return self.exit_codes.ERROR_STEP
        self.out("parent", self.ctx.first.outputs.remote_folder)
        self.out("copied", self.ctx.copied.outputs.seen)
        self.out("linked", self.ctx.linked.outputs.seen)
        return None
