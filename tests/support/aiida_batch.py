"""What users run: one batch of it for a computer, handed to the daemon at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.aiida_calcs import RestartChain
from support.aiida_runs import add, options, planned

OUTPUTS = """
cat deep/down/single.txt a/nested.txt other/x 2>/dev/null
mkdir -p out/d1 out/d2; for d in d1 d2; do echo "$d" > out/$d/r.xml; echo skip > out/$d/skip; done
echo log > run.log; echo other > other.log; echo top > top.dat; printf '' > empty.dat
echo passing > out/big.tmp
"""
RETRIEVE = {
    "retrieve": [
        "top.dat",
        "empty.dat",
        "never-written.dat",
        ["*.log", ".", 0],
        ["out/*/r.xml", "kept", 3],
        ["out/d1/skip", ".", 2],
    ],
    "temporary": [["out/*.tmp", ".", 2]],
}
EXPECTED = {
    "retrieved": {
        "stdout.txt": "single\nnested\nfrom sub\n",
        "top.dat": "top\n",
        "empty.dat": "",
        "run.log": "log\n",
        "other.log": "other\n",
        "kept/out/d1/r.xml": "d1\n",
        "kept/out/d2/r.xml": "d2\n",
        "d1/skip": "skip\n",
    },
    "temporary": {"out/big.tmp": "passing\n"},
}


@dataclass
class Batch:
    """Everything that was handed to the daemon for one computer, at once."""

    code: Any
    add: Any
    chain: Any
    files: Any
    restarts: Any
    copied: Any
    packed: Any

    @classmethod
    def start(cls, code: Any) -> Batch:
        """Hand it over."""
        from aiida import engine, orm
        from aiida.plugins import WorkflowFactory

        folder = orm.FolderData()
        folder.base.repository.put_object_from_bytes(b"nested\n", "a/nested.txt")
        folder.base.repository.put_object_from_bytes(b"from sub\n", "sub/x")
        single = orm.SinglefileData.from_string("single\n", filename="one.txt")
        multiply_add = WorkflowFactory("core.arithmetic.multiply_add")
        base = code.computer.get_workdir().replace("{username}", "alice")
        stash = {"target_base": f"{base}-stash", "source_list": ["top.dat", "out"]}
        return cls(
            code=code,
            add=add(code),
            chain=engine.submit(multiply_add, x=orm.Int(2), y=orm.Int(3), z=orm.Int(4), code=code),
            files=planned(code, OUTPUTS, RETRIEVE, folder=folder, file=single),
            restarts=engine.submit(RestartChain, code=code, options=options()["options"]),
            copied=planned(code, OUTPUTS, {}, stash={**stash, "stash_mode": "copy"}),
            packed=planned(code, OUTPUTS, {}, stash={**stash, "stash_mode": "tar.gz", "dereference": False}),
        )
