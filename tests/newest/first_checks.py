"""What a user does first with the installed package. Only `make test-newest` runs this file."""

from __future__ import annotations

from pathlib import Path

import yaml

import prefect_psik
from tests.integration.local import wait_until
from tests.integration.prefect_services import REPOSITORY, Services
from tests.newest.flows import LONGEST_SECONDS


def test_the_package_is_the_installed_one() -> None:
    assert REPOSITORY not in Path(prefect_psik.__file__).parents


def test_a_flow_runs_a_job(services: Services) -> None:
    child = services.python("-m", "flows.hello_job")
    assert child.ends(LONGEST_SECONDS), child.lines()
    assert "Hello from" in "\n".join(child.lines())
    assert services.state(services.newest("hello job")).is_completed()


def test_all_is_deployed_and_a_flow_run_of_it_runs_a_job(services: Services) -> None:
    services.prefect("deploy", "--all")
    names = [entry["name"] for entry in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]]
    with services.client() as client:
        assert {deployment.name for deployment in client.read_deployments()} == set(names)
    services.worker()
    run = services.run_deployment("sweep/sweep", name="newest", table=[{"ANGLES": 180}])
    wait_until(lambda: services.state(run).is_final(), LONGEST_SECONDS)
    assert services.state(run).is_completed(), services.logs(run)
    services.end_children()
