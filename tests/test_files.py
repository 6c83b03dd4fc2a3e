"""Whole files, hashes, and locks: held, refused, taken over, waited for."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nested_jax import files
from nested_jax.errors import HeldError
from nested_jax.files import (
    LOCK,
    file_sha256,
    folder_sha256,
    hold,
    hold_folder,
    own,
    owner_of,
    process_start,
    whole_file,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from nested_jax.files import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
# Every start adds 1 to a number in a file, in two steps: without the lock some are lost.
COUNTER = """
import sys, time
from pathlib import Path
from nested_jax.files import hold_folder
folder = Path(sys.argv[1])
for _ in range(20):
    with hold_folder(folder, wait=print):
        file = folder / "number"
        number = int(file.read_text()) if file.exists() else 0
        time.sleep(0.002)
        file.write_text(str(number + 1))
"""


def start(script: str, folder: Path, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def start_holder(folder: Path) -> subprocess.Popen[str]:
    process = start(HOLDER, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave_lock(folder: Path, **changes: object) -> Path:
    """Write the lock of this process, with some of it changed."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(own("left")._replace(**changes)._asdict()))
    return folder


# --- files ---------------------------------------------------------------------------------------


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"before")
    with suppress(KeyError), whole_file(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"before"
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", {"a": object()})
    write_json(tmp_path / "below" / "b.json", {"a": 1})
    assert json.loads((tmp_path / "below" / "b.json").read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b.json", "below"]


def test_hashes_against_hashlib(tmp_path: Path) -> None:
    write_bytes(tmp_path / "b", b"two")
    write_bytes(tmp_path / "a", b"one")
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    assert file_sha256(tmp_path / "a") == one
    listed = f"a\0{one}\nb\0{two}\n".encode()
    assert folder_sha256(tmp_path) == hashlib.sha256(listed).hexdigest()


# --- locks ---------------------------------------------------------------------------------------


def test_a_held_folder_is_refused_with_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_holder(folder) as process:
        began = time.monotonic()
        with pytest.raises(HeldError) as raised, hold_folder(folder):
            pass
        assert time.monotonic() - began < 1
        said = str(raised.value)
        assert f"{folder} is in use by process {process.pid} on {socket.gethostname()}" in said
        assert " since 20" in said
        assert "remove" not in said  # it would be the wrong advice
        owner = owner_of(folder)
        assert owner is not None
        assert owner.pid == process.pid
        process.terminate()


def test_a_lock_is_released_at_the_end_and_on_an_error(tmp_path: Path) -> None:
    with suppress(KeyError), hold_folder(tmp_path):
        assert owner_of(tmp_path) is not None
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with hold_folder(tmp_path), pytest.raises(HeldError), hold_folder(tmp_path):
        pass  # held by this very process
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    for _ in range(3):
        with start_holder(tmp_path) as process:
            process.send_signal(signal.SIGKILL)
        assert (tmp_path / LOCK).exists()
        assert owner_of(tmp_path) is None
    with hold_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
    assert process_start(process.pid) is None
    with hold_folder(tmp_path):
        pass
    process.communicate()


STALE: dict[str, Callable[[Path], Path]] = {
    "a process number that was given again": lambda f: leave_lock(f, started="before 1"),
    "no process of that number": lambda f: leave_lock(f, pid=2**22 + 1),
    "an empty file, of an earlier version": lambda f: ((f / LOCK).write_bytes(b"") and f) or f,
}


@pytest.mark.parametrize("name", STALE)
def test_what_is_stale_is_taken_over(name: str, tmp_path: Path) -> None:
    folder = STALE[name](tmp_path)
    assert owner_of(folder) is None
    with hold_folder(folder):
        owner = owner_of(folder)
        assert owner is not None
        assert owner.pid == os.getpid()
    assert not (folder / LOCK).exists()


def test_the_lock_of_another_machine_stays_with_advice(tmp_path: Path) -> None:
    folder = leave_lock(tmp_path, host="node7", pid=2**22 + 1)
    with pytest.raises(HeldError, match=f"on node7 since .* dead, remove {folder / LOCK}"):
        hold_folder(folder).__enter__()
    assert owner_of(folder) is not None


def test_a_job_that_slurm_started_again_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere, after the machine of its first start was lost; another job is refused."""
    folder = leave_lock(tmp_path, host="node7", job="12", attempt=0)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(HeldError), hold_folder(folder):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with hold_folder(folder):
        pass


def test_a_dead_owner_whose_lock_somebody_holds_in_the_kernel_is_alive(tmp_path: Path) -> None:
    """A process of a container, whose number means nothing here."""
    folder = leave_lock(tmp_path, pid=2**22 + 1)
    with open(folder / LOCK, "r+b") as file:
        assert files.try_flock(file)
        with pytest.raises(HeldError), hold_folder(folder):
            pass
    with hold_folder(folder):
        pass


def test_what_is_no_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("mine")
    with pytest.raises(HeldError, match="is not a lock of nested_jax"), hold_folder(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == "mine"


def test_one_of_many_that_find_a_dead_lock_gets_it(tmp_path: Path) -> None:
    """Each round starts with a stale lock; sums show whether two ever held it at once."""
    leave_lock(tmp_path, pid=2**22 + 1)
    processes = [start(COUNTER, tmp_path) for _ in range(4)]
    time.sleep(0.5)
    processes[0].kill()
    lost = processes[0].communicate()[0]
    outputs = [process.communicate(timeout=60) for process in processes[1:]]
    assert [process.returncode for process in processes[1:]] == [0, 0, 0], (outputs, lost)
    assert 60 <= int((tmp_path / "number").read_text()) <= 80
    assert [p.name for p in tmp_path.iterdir()] == ["number"]


def test_without_links_and_kernel_locks_it_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(files.NO_LINKS[0], "not here")

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(files, "try_flock", lambda _: None)
    with hold_folder(tmp_path), pytest.raises(HeldError), hold_folder(tmp_path):
        pass
    with hold_folder(leave_lock(tmp_path, pid=2**22 + 1)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_that_waits_says_for_whom_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "NOTE_SECONDS", 0.1)
    said: list[str] = []
    order: list[str] = []

    def waits() -> None:
        with hold_folder(tmp_path, wait=said.append):
            order.append("second")

    with hold_folder(tmp_path):
        thread = threading.Thread(target=waits)
        thread.start()
        time.sleep(0.4)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert len(said) == 1
    assert said[0].startswith(f"waiting for {tmp_path}, in use by process {os.getpid()} on ")


def test_one_that_waits_for_another_machine_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "OTHER_HOST_SECONDS", 0.1)
    folder = leave_lock(tmp_path, host="node7")
    with pytest.raises(HeldError, match="node7"), hold_folder(folder, wait=print):
        pass


def test_a_lock_that_was_removed_by_hand_is_not_taken_from_its_next_owner(tmp_path: Path) -> None:
    with hold(tmp_path / "x.lock", "x"):
        (tmp_path / "x.lock").unlink()
        other = json.dumps(own("other")._asdict())
        (tmp_path / "x.lock").write_text(other)
    assert (tmp_path / "x.lock").read_text() == other
