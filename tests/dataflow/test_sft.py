"""Supervised fine-tuning's script."""

import fakes
import tiny

from jaxflow.dataflow.sft import sft
from jaxflow.types import Demonstrations


def test_the_student_imitates_the_demonstrations_once():
    log = []
    batch = tiny.experience(rows=2)
    demonstrations = Demonstrations(batch.tokens, batch.lengths, batch.response_mask)
    returned = sft(fakes.FakeRole("student", log), demonstrations)
    assert [call.name for call in log] == ["student.imitate"] == [future.name for future in returned]
    assert log[0].arguments[0] is demonstrations
