"""The one command: `hedgerow up`, `node`, `gateway`, `aggregator`, `sim`, `plan`, `backup`, `restore`, ...

Exit codes: 0 ok; 1 the target was missed, the conservation law is broken, or a check failed; 2 bad usage
or a bad configuration; 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import hedgerow
from hedgerow.core.errors import ConfigError
from hedgerow.custody.command import add_custody_commands
from hedgerow.planning.command import add_plan_command
from sims.command import add_sim_commands, one_command

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = (
    "exit codes: 0 ok, 1 target missed or conservation law broken or a check failed,\n"
    "            2 bad usage or configuration, 130 interrupted"
)
Role = Literal["node", "gateway", "aggregator"]
_MODULES = {"node": "edge_node", "gateway": "gateway", "aggregator": "aggregator"}
# Which extra brings what a small installation leaves out.
_EXTRAS = {
    "jinja2": "aggregator",
    "matplotlib": "up",
    "psutil": "up",
    "ray": "ray",
    "rich": "up",
    "safetensors": "aggregator",
    "sklearn": "demo",
    "tinygrad": "train",
}
_SUMMARIES = {
    "node": "train on this device's own data",
    "gateway": "collect the updates of nearby nodes and pass them on",
    "aggregator": "merge updates into versions and keep the ledger",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # Read by numpy when it is imported: on vectors of these sizes a second thread only spins.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = build_parser().parse_args(one_command(words))
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except ConfigError as error:
        print(f"hedgerow: {error}", file=sys.stderr)
        return BAD_USAGE
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        fix = f"pip install 'hedgerow[{_EXTRAS[package]}]'"
        print(f"hedgerow: this needs the package {package}: {fix}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain again while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every subcommand."""
    parser = argparse.ArgumentParser(
        prog="hedgerow",
        description=hedgerow.__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hedgerow {hedgerow.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_up(commands)
    for role in _MODULES:
        _add_role(commands, role)
    add_sim_commands(partial(_command, commands))
    add_plan_command(partial(_command, commands))
    add_custody_commands(partial(_command, commands))
    _add_config(commands)
    _add_doctor(commands)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    example: str,
    exit_codes: str = EXIT_CODES,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}\n\n{exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_up(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = _command(
        commands,
        "up",
        "run a whole fleet on this machine until its target or a limit",
        "hedgerow up configs/demo.toml --nodes 12 --seed 3",
    )
    up.set_defaults(run=_up)
    up.add_argument(
        "config",
        nargs="?",
        help=".toml or .json file, or the name of a packaged one (demo); not needed with --resume",
    )
    up.add_argument("--dir", type=Path, help="folder of the run (default: runs/NAME of the config)")
    again = up.add_mutually_exclusive_group()
    again.add_argument("--fresh", action="store_true", help="delete an earlier run in --dir first")
    again.add_argument("--resume", action="store_true", help="go on with the earlier run in --dir")
    up.add_argument(
        "--broker", help="auto, mosquitto, embedded, or mqtt[s]://[user:password@]host[:port]"
    )
    up.add_argument("--staleness", help="exponential, polynomial, hinge or constant")
    up.add_argument("--encoding", help="int8 or fp32: how updates travel")
    up.add_argument("--nodes", type=int, help="how many nodes")
    up.add_argument("--gateways", type=int, help="how many gateways")
    up.add_argument("--seed", type=int, help="seed of the data split, the model and the training")
    up.add_argument("--target", type=float, help="stop when the metric reaches this")
    up.add_argument("--max-versions", type=int, help="stop at this version")
    up.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    up.add_argument("--plain", action="store_true", help="one line per version, no live view")


def _up(parsed: argparse.Namespace) -> int:
    from hedgerow.up.options import Options
    from hedgerow.up.run import run_up

    return run_up(
        Options(
            config=parsed.config,
            folder=parsed.dir,
            fresh=parsed.fresh,
            resume=parsed.resume,
            broker=parsed.broker,
            staleness=parsed.staleness,
            encoding=parsed.encoding,
            nodes=parsed.nodes,
            gateways=parsed.gateways,
            seed=parsed.seed,
            target=parsed.target,
            max_versions=parsed.max_versions,
            json_file=parsed.json,
            plain=parsed.plain,
        )
    )


def _add_role(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", role: str) -> None:
    identity = {"node": "node-01", "gateway": "gw-1", "aggregator": "aggregator"}[role]
    command = _command(
        commands,
        role,
        _SUMMARIES[role],
        f"hedgerow {role} fleet.toml --dir /var/lib/hedgerow"
        + (f" --id {identity}" if role != "aggregator" else ""),
    )
    command.set_defaults(run=lambda parsed: _role(role, parsed))
    command.add_argument("config", help=".toml or .json file")
    command.add_argument(
        "--dir", type=Path, required=True, help="folder of this process's own state"
    )
    if role == "aggregator":
        command.set_defaults(id=identity)
    else:
        command.add_argument("--id", required=True, help=f"name in the fleet, such as {identity}")
    if role == "node":
        command.add_argument(
            "--index",
            type=int,
            default=0,
            help="which share of a data set that is split over the fleet is this node's (from 0)",
        )
    else:
        command.set_defaults(index=0)


def _role(role: str, parsed: argparse.Namespace) -> int:
    import msgspec

    from hedgerow.core.config import Identifier
    from hedgerow.runtime.configfile import load_config

    try:
        msgspec.convert(parsed.id, Identifier)
    except msgspec.ValidationError:
        raise ConfigError(
            f"--id: {parsed.id!r} must be 1 to 32 lower-case letters, digits or hyphens"
        ) from None
    config = load_config(parsed.config)
    if role == "node" and not 0 <= parsed.index < config.fleet.nodes:
        raise ConfigError(
            f"--index: {parsed.index} must lie in 0..{config.fleet.nodes - 1} (fleet.nodes)"
        )
    parsed.dir.mkdir(parents=True, exist_ok=True)
    entry = importlib.import_module(f"{_MODULES[role]}.__main__")
    return int(entry.main(config, identity=parsed.id, folder=parsed.dir, index=parsed.index))


def _add_config(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = _command(
        commands, "config", "work with configuration files", "hedgerow config check fleet.toml"
    )
    inner = group.add_subparsers(metavar="COMMAND", required=True)
    check = _command(
        inner,
        "check",
        "check a configuration and say in plain words what it does",
        "hedgerow config check configs/demo.toml",
    )
    check.set_defaults(run=_check)
    check.add_argument("config", help=".toml or .json file, or the name of a packaged one")
    check.add_argument("--json", action="store_true", help="print the whole configuration as JSON")


def _check(parsed: argparse.Namespace) -> int:
    from hedgerow.core.describe import as_json, in_words
    from hedgerow.runtime.configfile import load_config

    config = load_config(parsed.config)
    print(as_json(config) if parsed.json else "\n".join(in_words(config)))
    return OK


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = _command(
        commands,
        "doctor",
        "check that this machine can run a fleet, or its part of one",
        "hedgerow doctor --config fleet.toml",
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--config", help="also check this file's broker and aggregator")


def _doctor(parsed: argparse.Namespace) -> int:
    from hedgerow.runtime.configfile import load_config
    from hedgerow.up.doctor import examine

    findings = examine(load_config(parsed.config) if parsed.config else None)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}: {finding.detail}")
    return OK if all(finding.ok for finding in findings) else FAILED


if __name__ == "__main__":
    sys.exit(main())
