"""The command line: one module a verb, found by its name."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys

from spotd import __version__
from spotd.core.words import readable_lines
from spotd.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, SpotdError

# verb -> one line of help; the module is spotd.cli.<verb with underscores>. A verb's module
# is imported only when it is called: `spotd run` must start in milliseconds.
VERBS = {
    "run": "the daemon, in the foreground",
    "status": "state, step, checkpoints, store lag, notices, metadata health",
    "checkpoints": "what is on the disk and in the store",
    "checkpoint": "ask the trainer for a checkpoint now and wait until it is stored",
    "restore": "fetch and verify a checkpoint, without the daemon",
    "history": "starts, notices, checkpoints, resumes and what each cost",
    "reload": "have the running daemon take a changed configuration over",
    "drill": "rehearse an interruption on the running daemon",
    "demo": "the whole story on this machine, on loopback",
    "check": "find what would go wrong before it costs money",
    "notify-test": "send a test message to webhook and SNS topic",
    "simulate": "replay a trace of interruptions: goodput, cost, best interval",
    "user-data": "print the cloud-init user data for this configuration",
    "launch": "launch a persistent Spot instance with stop behaviour",
    "instances": "list this run's instances and what their requests will do",
    "terminate": "cancel the Spot request, then terminate the instance",
    "prices": "Spot price history per zone and type",
    "cost": "paid, on-demand equivalent, saved, lost work",
    "report": "write one HTML page about the run",
}


STATUSES = (
    "exit status: 0 done; 1 it failed, one line says why and what to do; 2 wrong usage; 69 no "
    "daemon, or a service that does not answer; 78 the configuration cannot be used"
)


def module_of(verb: str) -> str:
    """Returns the name of the module that implements a verb."""
    return f"spotd.cli.{verb.replace('-', '_')}"


def available() -> dict[str, str]:
    """Returns the verbs this installation has, with their help."""
    return {v: h for v, h in VERBS.items() if importlib.util.find_spec(module_of(v)) is not None}


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser; only the named verb's own options are filled in."""
    top = argparse.ArgumentParser(
        prog="spotd", description="Training on a Spot instance that feels like owning the machine.",
        epilog=STATUSES,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"spotd {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in available().items():
        if name == verb:
            importlib.import_module(module_of(name)).add_parser(verbs)
            own = verbs.choices[name]
            own.description = own.description or f"{text[0].upper()}{text[1:]}."
            own.epilog = own.epilog or STATUSES
        else:
            verbs.add_parser(name, help=text)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; returns its exit status (contracts.md, section 2)."""
    words = sys.argv[1:] if arguments is None else arguments
    verb = next((w for w in words if not w.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        import difflib  # noqa: PLC0415 - only for who mistypes

        close = difflib.get_close_matches(verb, VERBS, n=1)
        told = f"did you mean {close[0]}?" if close else f"there are {', '.join(available())}"
        parser().error(f"there is no verb {verb[:60]!r}; {told}")
    options = parser(verb).parse_args(words)
    try:
        status: int = importlib.import_module(module_of(options.verb)).run(options)
    except SpotdError as e:
        print(f"spotd: {readable_lines(e.message)}", file=sys.stderr)
        if e.hint:
            print(f"       {readable_lines(e.hint)}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `spotd history | head`: nobody listens any more, and that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    return status


__all__ = ["EXIT_DONE", "EXIT_FAILED", "EXIT_USAGE", "main", "parser"]
