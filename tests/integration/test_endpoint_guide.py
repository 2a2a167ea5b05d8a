"""docs/how-to/run-an-endpoint.md, from its first command to its last, with the files that it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import prefect.settings
import pytest
import yaml

from prefect_psik import PsikBackend
from tests.integration.local import wait_until
from tests.integration.test_docs import ROOT, fenced
from tests.testbed.facility import Facility
from tests.testbed.multi_user import MultiUserEndpoint
from tests.testbed.packages import endpoint_bin

pytestmark = pytest.mark.usefixtures("prefect_server")

TEXT = (ROOT / "docs" / "how-to" / "run-an-endpoint.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading that begins like this."""
    found = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[0]


def blocks(title: str, language: str) -> list[str]:
    return [example.text for example in fenced(title, section(title)) if example.language.split()[0] == language]


def inline(title: str) -> list[str]:
    """Commands of the endpoint's program that stand within sentences."""
    return re.findall(r"`(globus-compute-endpoint [^`\n]+)`", section(title))


def files(title: str) -> dict[str, str]:
    """Blocks that a line with a file's name announces."""
    found = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    return dict(found)


class LoginNode:
    """A person's shell there: each call is a new one, in the person's own directory."""

    def __init__(self, facility: Facility) -> None:
        self._facility = facility
        self.home = facility.state.directory("guide", owner=facility.user)
        login = facility.globus.env()
        self._environment = {key: login[key] for key in login if not key.startswith("GLOBUS_COMPUTE_CLIENT")}

    def write(self, name: str, text: str) -> None:
        path = self.home / name
        path.write_text(text)
        path.chmod(0o644)

    def run(self, *commands: str, globus: bool = True) -> str:
        """Run commands, after what the guide says a new shell needs; return what they print."""
        before = "cd\n[ ! -d venv ] || . venv/bin/activate\n[ ! -f globus.env ] || . ./globus.env\n"
        done = self._facility.as_user(
            *("bash", "-ec", before + "\n".join(commands)),
            env={"HOME": str(self.home), **(self._environment if globus else {})},
        )
        assert done.returncode == 0, f"{commands}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def stop(self, command: str) -> None:
        """Stop the endpoint; the command gives up after 10 s, and is to be repeated then."""
        for _ in range(18):
            if "NOT YET" not in (said := self.run(f"{command} || echo NOT YET")):
                return
        raise AssertionError(said)


@pytest.fixture
def node(facility: Facility) -> Iterator[LoginNode]:
    made = LoginNode(facility)
    yield made
    if (made.home / ".globus_compute/psik_endpoint").exists():
        made.stop("globus-compute-endpoint stop psik_endpoint")
    shutil.rmtree(made.home)


def lend_packages(node: LoginNode, facility: Facility) -> None:
    """Have pip find the packages of the testbed installed already: the same versions, without the download."""
    [own] = node.home.glob("venv/lib/python3*/site-packages")
    lent = endpoint_bin().parent / "lib" / own.parent.name / "site-packages"
    node.run(
        f"echo {lent} > {own}/testbed.pth",
        f"sed '1s|.*|#!{node.home}/venv/bin/python|' {endpoint_bin()}/globus-compute-endpoint"
        " > venv/bin/globus-compute-endpoint",
        "chmod +x venv/bin/globus-compute-endpoint",
    )


def prefect_psik(facility: Facility, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the guide at the beamline, where no login is but that of the block."""
    program, *arguments = command.split()
    assert program == "prefect-psik"
    env = {key: value for key, value in (os.environ | facility.env).items() if "COMPUTE_CLIENT" not in key}
    env |= {"PREFECT_API_URL": str(prefect.settings.PREFECT_API_URL.value()), "COLUMNS": "200"}
    whole = [sys.executable, "-m", "prefect_psik.cli", *arguments]
    return subprocess.run(whole, env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(900)
def test_the_guide_from_its_first_command_to_its_last(facility: Facility, node: LoginNode, tmp_path: Path) -> None:
    # 1. install
    [install] = blocks("1.", "console")
    make, activate, pip = install.splitlines()
    node.run(make, activate, globus=False)
    lend_packages(node, facility)
    assert "already satisfied: psik" in node.run(pip, globus=False)

    # 2. configuration
    for name, text in files("2.").items():
        node.write(name, text)
    assert "Created profile for endpoint" in node.run(*blocks("2.", "console"))

    # 3. login
    secrets = f"CLIENT_UUID={facility.client_id} CLIENT_SECRET={facility.client_secret}"
    whoami = node.run(f"export {secrets}", *blocks("3.", "console"))
    assert facility.client_id.split("-", 1)[0] in whoami, "its table wraps long names"
    assert (node.home / "globus.env").stat().st_mode & 0o077 == 0

    # 4. start
    start, show = blocks("4.", "console")[0].splitlines()
    node.run(start)
    wait_until((node.home / ".globus_compute/psik_endpoint/endpoint.json").exists)
    endpoint_id = json.loads(node.run(show))["endpoint_id"]
    wait_until(lambda: facility.globus.is_online(endpoint_id))

    # 5. check
    [saving] = blocks("5.", "python")
    for placeholder, value in {
        "CLIENT_UUID": facility.client_id,
        "CLIENT_SECRET": facility.client_secret,
        "ENDPOINT_UUID": endpoint_id,
    }.items():
        saving = saving.replace(f'"{placeholder}"', repr(value))
    exec(compile(saving, "run-an-endpoint.md", "exec"), {})
    for name, text in files("5.").items():
        (tmp_path / name).write_text(text)
    look, run = blocks("5.", "console")[0].splitlines()
    looked = prefect_psik(facility, look, tmp_path)
    assert looked.returncode == 0, looked.stdout
    done = prefect_psik(facility, run, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == os.uname().nodename
    assert len(list((node.home / "psik").glob("[0-9]*/spec.json"))) == 1

    # 6. allow nothing else
    register, restart = blocks("6.", "console")
    registered = prefect_psik(facility, register.strip(), tmp_path)
    function_id = registered.stdout.strip()
    [config] = blocks("6.", "yaml")
    node.write(".globus_compute/psik_endpoint/config.yaml", config.replace("FUNCTION_UUID", function_id))
    stop, start = restart.splitlines()
    node.stop(stop)
    node.run(start)
    refused = prefect_psik(facility, run, tmp_path)
    assert refused.returncode == 1
    assert "prefect-psik functions register" in refused.stderr
    block = PsikBackend.load("myfacility")
    assert isinstance(block, PsikBackend)
    block = block.model_copy(update={"function_id": UUID(function_id)})
    block.save("myfacility", overwrite=True)
    assert prefect_psik(facility, run, tmp_path).returncode == 0

    # what the schema keeps out: the template's variables
    proof = node.home / "proof"
    options = {"worker_init": f"touch {proof}", "endpoint_setup": f"touch {proof}"}
    block.model_copy(update={"user_endpoint_config": options}).save("myfacility-options", overwrite=True)
    refused = prefect_psik(facility, f"{run} --backend myfacility-options", tmp_path)
    assert refused.returncode == 1
    assert "does not accept user_endpoint_config of the block" in refused.stderr
    assert "Additional properties are not allowed" in refused.stderr
    assert not proof.exists()

    # stop
    [stop] = blocks("Stop", "console")[0].splitlines()
    node.stop(stop)
    assert prefect_psik(facility, look, tmp_path).returncode == 1

    # what the text has in its lines
    [logout], [delete] = inline("3."), inline("Stop")
    node.run(f"{delete} --yes")
    assert not (node.home / ".globus_compute/psik_endpoint").exists()
    node.run(logout)


def test_what_administrators_are_shown_is_what_the_testbed_runs(facility: Facility) -> None:
    [mapping] = blocks("For administrators", "json")
    testbed = MultiUserEndpoint(facility.state, facility.daemons, facility.globus)
    shown = mapping.replace("CLIENT_UUID", facility.client_id).replace("beamline", testbed.user)
    assert json.loads(shown) == json.loads(testbed._mapping())
    [environment] = blocks("For administrators", "yaml")
    assert set(yaml.safe_load(environment)) == {"PATH", "SLURM_CONF"}
