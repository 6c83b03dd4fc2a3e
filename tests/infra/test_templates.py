"""The templates of `infra/`, without a cluster: checked, and their commands run on loopback.

A dry run starts what the template starts, with the environment that the scheduler would give it:
two processes that train, are terminated, and go on. It ends in the bits of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import assert_equal
from tiny import ROOT, environment, free_port, read_lines, write_config, write_data

from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.workdir import saved_steps

SLURM, K8S = ROOT / "infra" / "slurm", ROOT / "infra" / "k8s"
STEPS = {"train.steps": 30, "train.save_every": 5, "train.eval_every": 15, "mesh.fsdp": 2}


def documents(file: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(file.read_text()) if found]


def job_of(file: Path) -> dict[str, Any]:
    """Return the Job of a manifest, also the one inside a JobSet."""
    for document in documents(file):
        if document["kind"] == "Job":
            return document
        if document["kind"] == "JobSet":
            (job,) = document["spec"]["replicatedJobs"]
            return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}} | (
                job["template"]
            )
    raise AssertionError(file)


# --- without running them ------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sbatch")), ids=lambda p: p.name)
def test_scripts_are_sound(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is not None:
        ended = subprocess.run([checker, script], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(K8S.glob("*.yaml")), ids=lambda p: p.name)
def test_manifests_are_of_the_published_schema(file: Path) -> None:
    """Kubernetes' own schema, unknown fields refused; the Job inside a JobSet likewise."""
    validator = pytest.importorskip("kubernetes_validate")
    checked = [found for found in documents(file) if found["kind"] != "JobSet"]
    for document in [*checked, job_of(file)]:
        validator.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("file", sorted(K8S.glob("*.yaml")), ids=lambda p: p.name)
def test_what_a_manifest_says_twice_is_the_same(file: Path) -> None:
    job = job_of(file)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(values["JAX_NUM_PROCESSES"])
    host, _, port = values["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert int(port) in [each["containerPort"] for each in container["ports"]]
    top = documents(file)
    names = {found["metadata"]["name"] for found in top}
    assert names == {"nested-jax"}
    pod = "nested-jax-train-0-0" if top[0]["kind"] == "JobSet" else "nested-jax-0"
    assert host == f"{pod}.nested-jax"
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in job["template"]["spec"]["volumes"]}
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 300
    (rule,) = [r for r in job["podFailurePolicy"]["rules"] if r["action"] == "FailJob"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [3]


# --- dry runs ------------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env python3
# Stands for srun: two tasks on loopback, each with what Slurm tells it; signals reach both.
import os, signal, subprocess, sys

arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    arguments.pop(0)
slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1,127.0.0.1"}
slurm |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0"}
tasks = [
    subprocess.Popen(arguments, env={**os.environ, **slurm, "SLURM_PROCID": str(number)})
    for number in range(2)
]
open(os.environ["STEP_PID"], "w").write(str(os.getpid()))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""


class Pair:
    """The two processes of a run, however they are started."""

    def __init__(self, processes: list[subprocess.Popen[str]], stop: Any) -> None:
        self.processes, self.stop = processes, stop

    def wait(self) -> tuple[list[int], str]:
        said = [process.communicate(timeout=400) for process in self.processes]
        return [process.returncode for process in self.processes], repr(said)


def popen(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environ, cwd=ROOT, text=True, **pipes)


def slurm_pair(folder: Path, arguments: list[str], attempt: int) -> Pair:
    """Run the script as sbatch does; a warning before the limit reaches the step alone."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "srun").write_text(SRUN)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {str(folder)!r}/scontrol.log\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environ = {
        **environment(2),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(free_port()),  # the port of the coordinator is made of it
        "SLURM_RESTART_COUNT": str(attempt),
        "STEP_PID": str(folder / "step"),
    }
    process = popen(["bash", str(SLURM / "train.sbatch"), *arguments], environ)
    return Pair([process], lambda: os.kill(int((folder / "step").read_text()), signal.SIGTERM))


HOSTS = 'hostname {name} && mount --bind {hosts} /etc/hosts && exec "$@"'


@contextmanager
def two_hosts(folder: Path) -> Iterator[list[list[str]]]:
    """Two network namespaces that see each other, with names of their own, like two pods.

    Yields what stands before a command that runs in each; nothing where that is not permitted.
    """
    names = [f"nj{os.getpid()}{letter}" for letter in "ab"]
    a, b = names
    pods = ["nested-jax-{}", "nested-jax-train-0-{}"]
    rows = ["127.0.0.1 localhost"]
    rows += [
        f"10.77.0.{i + 1} host{i} " + " ".join(f"{pod.format(i)}.nested-jax" for pod in pods)
        for i in range(2)
    ]
    hosts = folder / "hosts"
    hosts.write_text("\n".join(rows) + "\n")
    steps = [f"ip netns add {name}" for name in names]
    steps += [f"ip link add {a} netns {a} type veth peer name {b} netns {b}"]
    for number, name in enumerate(names):
        steps += [f"ip -n {name} addr add 10.77.0.{number + 1}/24 dev {name}"]
        steps += [f"ip -n {name} link set {device} up" for device in (name, "lo")]
    try:
        tools = shutil.which("ip") is not None and shutil.which("unshare") is not None
        fine = tools and all(
            subprocess.run(step.split(), capture_output=True, check=False).returncode == 0
            for step in steps
        )
        enter = []
        for number, name in enumerate(names):
            inner = HOSTS.format(name=f"host{number}", hosts=hosts)
            enter += [[*f"ip netns exec {name} unshare -mu sh -c".split(), inner, "sh"]]
        tried = fine and all(
            subprocess.run([*each, "true"], capture_output=True, check=False).returncode == 0
            for each in enter
        )
        yield enter if tried else []
    finally:
        for name in names if shutil.which("ip") is not None else []:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def pod_pair(file: Path, arguments: list[str], hosts: list[list[str]] | None = None) -> Pair:
    """Start the containers of a manifest, with their environment; the kubelet sends SIGTERM.

    Args:
      hosts: what stands before the command on each of two hosts; none is this one, on loopback.
    """
    job = job_of(file)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "launch.py"]
    port, processes = free_port(), []
    for index in range(job["completions"]):
        environ = {**environment(2), "JOB_COMPLETION_INDEX": str(index)}
        for each in container["env"]:
            if "valueFrom" in each:
                field = each["valueFrom"]["fieldRef"]["fieldPath"]
                assert "job-completion-index" in field
            environ[each["name"]] = str(each.get("value", index))
        if not hosts:
            environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
        before = hosts[index] if hosts else []
        processes.append(popen([*before, sys.executable, "launch.py", *arguments], environ))
    return Pair(processes, lambda: [process.terminate() for process in processes])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("templates")
    config = write_config(folder, write_data(folder / "data"), STEPS)
    arguments = ["--config", str(config), "--workdir", str(folder / "run")]
    status, said = pod_pair(K8S / "job.yaml", arguments).wait()
    assert status == [0, 0], said
    return config, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("template", ["train.sbatch", "job.yaml", "jobset.yaml"])
def test_a_dry_run(template: str, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    with two_hosts(tmp_path) as hosts:
        dry_run(template, *undisturbed, tmp_path, hosts)


def dry_run(
    template: str, config: Path, want: Path, tmp_path: Path, hosts: list[list[str]]
) -> None:
    run = tmp_path / "a run"
    arguments = ["--config", str(config), "--workdir", str(run)]

    def start(attempt: int) -> Pair:
        if template.endswith("sbatch"):
            return slurm_pair(tmp_path, arguments, attempt)
        return pod_pair(K8S / template, arguments, hosts)

    pair = start(0)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert all(process.poll() is None for process in pair.processes), pair.wait()
        time.sleep(0.02)
    pair.stop()
    status, said = pair.wait()
    assert set(status) == {143}, said
    stopped = saved_steps(run / "checkpoints")[-1]
    assert 0 < stopped < STEPS["train.steps"]
    if template.endswith("sbatch"):
        assert re.fullmatch(r"requeue \d+\n", (tmp_path / "scontrol.log").read_text())
    status, said = start(1).wait()
    assert set(status) == {0}, said
    assert f"going on from checkpoint {stopped}" in said
    if hosts and not template.endswith("sbatch"):  # two machines, as far as the run can tell
        starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
        assert [start["host"] for start in starts] == ["host0", "host0"]
    assert read_lines(run) == read_lines(want)
    assert_equal(load_checkpoint(run), load_checkpoint(want))
