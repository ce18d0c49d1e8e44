"""`python -m vllama`, the same as the command `vllama`."""

from vllama.cli.main import main

if __name__ == "__main__":
    main(prog_name="vllama")
