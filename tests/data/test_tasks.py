import os
import re
import subprocess
import sys

import pytest

from jaxflow.data.tasks import TASKS

tasks = pytest.mark.parametrize("task", [build() for build in TASKS.values()], ids=list(TASKS))


@tasks
def test_train_and_validation_share_no_prompt_and_cover_the_task(task):
    train = {row.prompt for row in task.train_rows(3)}
    validation = {row.prompt for row in task.validation_rows(3)}
    assert len(validation) == 512
    assert not train & validation
    assert train | validation == {prompt for prompt, _ in task.examples}


@tasks
def test_a_seed_fixes_the_split_and_another_changes_it(task):
    assert task.validation_rows(1) == task.validation_rows(1)
    assert task.validation_rows(1) != task.validation_rows(2)


@tasks
def test_prompts_and_answers_fit_the_limits_and_the_alphabet(task):
    rows = task.train_rows(0) + task.validation_rows(0)
    tokenizer = task.tokenizer
    assert all(tokenizer.decode(row.tokens) == row.prompt for row in rows)
    assert max(len(row.tokens) for row in rows) == task.max_prompt_tokens
    longest = max(len(tokenizer.encode(task.solution(row))) + 1 for row in rows)
    pairs = [pair for harm in (False, True) for pair in task.pairs(rows, 0, harm)]
    assert longest <= task.max_response_tokens <= max(max(map(len, pair.responses)) for pair in pairs)
    assert {row.data_source for row in rows} == {task.name}


def test_every_addition_is_right_and_all_pairs_are_there():
    task = TASKS["addition"]()
    rows = task.train_rows(0) + task.validation_rows(0)
    assert len(rows) == 100 * 100
    for row in rows:
        left, right = re.fullmatch(r"(\d+)\+(\d+)=", row.prompt).groups()
        assert task.solution(row) == str(int(left) + int(right))


def test_every_reversal_is_right_and_lengths_vary():
    task = TASKS["reversal"]()
    rows = task.train_rows(0)
    assert all(row.prompt == "".join(reversed(task.solution(row))) + ">" for row in rows)
    assert {len(task.solution(row)) for row in rows} == {3, 4, 5, 6}


def test_another_process_makes_the_same_rows():
    program = (
        "from jaxflow.data.tasks import TASKS\n"
        "print([[row.prompt for row in build().train_rows(5)[:20]] for build in TASKS.values()])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    here = [[row.prompt for row in build().train_rows(5)[:20]] for build in TASKS.values()]
    assert other.stdout.strip() == str(here), other.stderr
