"""`python -m nested_jax.doctor` answers on any machine."""

from __future__ import annotations

import json

import jax
import pytest

from nested_jax import doctor


def test_it_says_what_this_machine_can_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SIZES", doctor.SIZES[:1])
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"] == f"{jax.device_count()} x cpu"
    assert found["cudnn_attention"].startswith("no: it wants an NVIDIA GPU")
    assert "python -m nested_jax.fit" in found["configs"]["pilot.py:smoke"]
    assert doctor.main([]) == 0
    assert "pilot.py:smoke" in capsys.readouterr().out


def test_a_config_that_cannot_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available", lambda: (1 << 30, "of a small card"))
    assert "more than the 1 GiB of a small card" in doctor.fit("pilot.py")
