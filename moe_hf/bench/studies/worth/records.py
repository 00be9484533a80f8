"""What has been measured, in one file that several processes may add to: the costs of steps, and finished runs."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.studies.worth.candidates import TWIN, candidate
from moe_hf.bench.studies.worth.learning import Learnt, Sizes

# So much may the steps of a run differ from those that its budget buys at today's costs.
_TOLERANCE = 0.03


class Key(NamedTuple):
    """What a run is of: a candidate, a budget in CPU minutes, and a seed."""

    candidate: str
    minutes: float
    seed: int


class Records:
    """Costs and finished runs in a JSON file.

    Args:
        file: is made by the first entry.
        sizes: of all runs.

    Raises:
        CheckpointError: the file holds records of other sizes, or no records of this study.
    """

    def __init__(self, file: Path, sizes: Sizes) -> None:
        self._file, self._sizes = file, sizes._asdict()
        # Beside the file, which each write replaces: a lock on it would be on the old one.
        self._lock = FileLock(file.with_name(file.name + ".lock"))
        # For its errors alone, before hours of runs.
        self._read()

    def _read(self) -> dict[str, Any]:
        if not self._file.is_file():
            return {"sizes": self._sizes, "machine": {}, "costs": {}, "runs": []}
        try:
            content: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            sizes, _, _ = content["sizes"], content["costs"], content["runs"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{self._file} holds no records of this study; name another folder") from None
        if sizes != self._sizes:
            raise CheckpointError(f"{self._file} holds runs of other sizes, {sizes}; name another folder")
        return content

    def costs(self) -> dict[str, dict[str, float]]:
        """By candidate, as `measure_costs` returns them; `seconds` are the twin's times the ratio."""
        return self._read()["costs"]

    def add_costs(self, measured: dict[str, dict[str, float]], afresh: bool) -> None:
        """Remember costs. Unless they begin afresh, the twin's seconds of before stay and the new ratios apply to them.

        Then all costs are as of one moment, however busy the machine was when a candidate was added.
        """
        with self._lock:
            content = self._read()
            if afresh or TWIN not in content["costs"]:
                content["costs"], content["machine"] = {TWIN: measured[TWIN]}, describe_machine()
            twin = content["costs"][TWIN]["seconds"]
            for name, cost in measured.items():
                if name != TWIN:
                    content["costs"][name] = {**cost, "seconds": cost["ratio"] * twin}
            write_json(content, self._file)

    def runs(self) -> dict[Key, dict[str, Any]]:
        """Every finished run."""
        return {Key(*(run[name] for name in Key._fields)): run for run in self._read()["runs"]}

    def add_run(self, key: Key, steps: int, learnt: Learnt) -> None:
        """Remember a run, in place of one of the same key."""
        with self._lock:
            content = self._read()
            kept = [run for run in content["runs"] if Key(*(run[name] for name in Key._fields)) != key]
            cost = content["costs"][key.candidate]["seconds"]
            made = {"seconds_per_step": cost, "fields": candidate(key.candidate).fields, "machine": describe_machine()}
            content["runs"] = [*kept, {**key._asdict(), "steps": steps, **made, **learnt._asdict()}]
            write_json(content, self._file)

    def steps_of(self, name: str, minutes: float) -> int:
        """The steps of a candidate that so many CPU minutes buy."""
        return max(1, int(60 * minutes / self.costs()[name]["seconds"]))

    def has(self, key: Key) -> bool:
        """Whether such a run is there, with about as many steps as its budget buys now."""
        run = self.runs().get(key)
        if run is None:
            return False
        bought = self.steps_of(key.candidate, key.minutes)
        return abs(run["steps"] - bought) <= max(1, _TOLERANCE * bought)
