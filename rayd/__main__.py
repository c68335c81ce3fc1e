"""Entry point of `rayd` and of `python -m rayd`."""

import atexit

from rayd.interrupts import (
    NOTHING_DONE,
    STOPPED,
    InterruptedRunError,
    leave,
    leave_at_interrupt,
)


def main() -> None:
    """Run the command line and exit with its code, which is 130 after Ctrl-C at any moment."""
    leave_at_interrupt(NOTHING_DONE)
    from rayd import cli

    try:
        cli.main()
    except SystemExit as stop:
        # exit handlers (Ray's) must not print a traceback
        interrupted = stop.code == InterruptedRunError.exit_code
        at_end = "Interrupted at the end; the command had finished."
        leave_at_interrupt(STOPPED if interrupted else at_end)
        if interrupted:
            # Python remembers an interrupt that passed through `exec`, and would exit by the signal
            atexit._run_exitfuncs()
            leave()
        raise


if __name__ == "__main__":
    main()
