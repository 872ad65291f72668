"""Profiles survive the file; what is none is refused with what would be one."""

import dataclasses

import pytest

from jaxflow.mapping.devices import DEVICES, device_profile, write_profile
from jaxflow.types import UserError


def test_a_profile_written_is_the_profile_read(tmp_path):
    measured = dataclasses.replace(DEVICES["cpu"], kind="this machine", matmul_flops=123.5e9)
    write_profile(measured, tmp_path / "here.json")
    assert device_profile(str(tmp_path / "here.json")) == measured


def test_every_figure_is_positive_and_every_efficiency_a_share():
    for profile in DEVICES.values():
        figures = {name: value for name, value in vars(profile).items() if name != "kind"}
        may_be_none = (
            "dispatch_seconds",
            "generation_seconds",
            "generation_row_seconds",
            "simulated",
        )
        assert min(value for name, value in figures.items() if name not in may_be_none) > 0, profile.kind
        assert max(v for name, v in figures.items() if name.endswith("efficiency")) <= 1, profile.kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "not a device profile"), ('{"kind": "x"}', "it needs the keys"), (None, "not a device profile")],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, expected):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected):
        device_profile(str(path))


def test_a_figure_of_nothing_is_refused_by_its_name(tmp_path):
    write_profile(dataclasses.replace(DEVICES["h100"], matmul_flops=0.0), tmp_path / "bad.json")
    with pytest.raises(UserError, match="matmul_flops must be numbers above 0"):
        device_profile(str(tmp_path / "bad.json"))


def test_an_unknown_kind_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"a100-40.*tpu-v6e"):
        device_profile("h1000")
