"""Run the `vllama` command with `python -m vllama`."""

from vllama.cli.main import main

if __name__ == "__main__":
    main(prog_name="vllama")
