"""Coverage-guided fuzzing of one target with atheris: `python -m tests.fuzz.guided TARGET FOLDER SECONDS`.

`tests.fuzz.run` starts it for every target. FOLDER collects inputs that reached something new; one that fails
is written to FOLDER/../findings.
"""

import random
import sys
from importlib import import_module
from pathlib import Path

import atheris

LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-max_len=8192")


def main() -> None:
    """Fuzz until the time is up; the process ends with another code than 0 at the first failure."""
    name, folder, seconds = sys.argv[1:4]
    with atheris.instrument_imports(include=["hedgerow", "aggregator", "gateway", "edge_node"]):
        targets = import_module("tests.fuzz.targets")
        mutation = import_module("tests.fuzz.mutation")
    target = targets.TARGETS[name]

    def mutator(data: bytes, most_bytes: int, seed: int) -> bytes:
        if seed % 2:
            changed: bytes = mutation.mutate(name, data, random.Random(seed))
            if changed != data and len(changed) <= most_bytes:
                return changed
        return bytes(atheris.Mutate(data, most_bytes))

    findings = Path(folder).parent / "findings" / name
    findings.mkdir(parents=True, exist_ok=True)
    options = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={findings}/", folder]
    atheris.Setup([sys.argv[0], *options], target, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
