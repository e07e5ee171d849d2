"""Assembles the commands, and turns expected errors into a line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import warnings

import typer

from harness.cli import (
    bench,
    break_,
    compare,
    convert,
    doctor,
    fetch,
    ls,
    merge,
    plan,
    plugins,
    publish,
    records,
    report,
    run,
    show,
    theory,
    train,
    transfer,
    validate,
)
from harness.cli.output import complain
from harness.errors import HarnessError, UsageError

EXIT_CODES = """
Exit codes: 0 all done; 1 stopped by an error that the message explains; 2 the command line is
wrong; 3 done, but some rows or images are missing; 130 interrupted, and the same command goes on.
"""

app = typer.Typer(
    name="harness",
    help="The adversarial robustness of Mixture-of-Experts vision models, measured."
    f"\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("transfer")(transfer.transfer)
app.command("convert")(convert.convert)
app.command("fetch")(fetch.fetch)
app.command("plan")(plan.plan)
app.command("ls")(ls.ls)
app.command("show")(show.show)
app.command("plugins")(plugins.plugins)
app.command("publish")(publish.publish)
app.command("compare")(compare.compare)
app.command("break")(break_.break_)
app.command("validate")(validate.validate)
app.command("records")(records.records)
app.command("report")(report.report)
app.command("merge")(merge.merge)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.command("theory")(theory.theory)


def main() -> None:
    """Run the command line."""
    warnings.showwarning = _warn
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except HarnessError as error:
        complain(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        place = f"for {error.filename}" if error.filename else "on the disk or behind the output"
        complain(f"no space left {place}; make room and run the same command again")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest has no place
        sys.exit(1)


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        complain(str(message), kind="warning")
