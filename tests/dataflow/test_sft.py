"""Supervised fine-tuning's script."""

import fakes

from jaxflow.dataflow.sft import sft


def test_the_student_imitates_the_demonstrations_once():
    log = []
    demonstrations = fakes.FakeFuture("demonstrations", log)
    returned = sft(fakes.FakeRole("student", log), demonstrations)
    assert [call.name for call in log] == ["student.imitate"] == [future.name for future in returned]
    assert log[0].arguments[0] is demonstrations
