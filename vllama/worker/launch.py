"""The main module of a worker: vLLM's own API server with our plugin, tied to the gateway that started it.

    python -m vllama.worker.launch MODEL_PATH --uds SOCKET [any flag of `vllm serve`]
    python -m vllama.worker.launch --check-flags [any flag of `vllm serve`]
    python -m vllama.worker.launch --spare

`--check-flags` parses, says what vLLM has to say against the flags, and loads nothing. Both exit
with 2 where vLLM refuses a flag. `--spare` imports all that a worker needs, and becomes one when it
reads its order on standard input (vllama.worker.spare); it ends where there comes none.
"""

from __future__ import annotations

import os
import sys

from vllama.worker import forking, lifeline, model_inspection, one_process, spare, tracker

lifeline.tie()
if __name__ == "__main__":
    tracker.start()  # the first child, and the only one that outlives its parent, by a moment
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lifeline.tie)


def main(arguments: list[str]) -> None:
    """Run `vllm serve` with these arguments; returns when the server has stopped."""
    if arguments == ["--spare"]:
        spare.import_everything()
        ordered = spare.wait_for_order()
        if ordered is None:
            return
        arguments = list(ordered)
    check_only = arguments[:1] == ["--check-flags"]
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="vllm")
    command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    try:
        parsed = parser.parse_args(["serve", *arguments[check_only:]])
        command.validate(parsed)
    except SystemExit as refusal:
        # Libraries that a spare has imported print at a normal exit, and vLLM's own words must stay the last ones.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(refusal.code if isinstance(refusal.code, int) else 1)
    if not check_only:
        forking.prefer_fork(parsed)
        one_process.prefer_one_process()
        model_inspection.inspect_without_imports()
        command.cmd(parsed)


if __name__ == "__main__":
    main(sys.argv[1:])
