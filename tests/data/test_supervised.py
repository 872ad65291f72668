"""Rows with their responses: every way of writing them down gives the same row, and every mistake has its place."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from jaxflow.data.source import load_supervised_source
from jaxflow.data.supervised import Keys, Limits, load_demonstrations, load_judgements, load_preferences
from jaxflow.data.tokenizer import CharacterTokenizer
from jaxflow.types import UserError

TOKENIZER = CharacterTokenizer("abcdefgh ")
KEYS = Keys("prompt", "response", "chosen", "rejected", "label", "margin", "chosen_safe", "rejected_safe")
LIMITS = Limits(max_prompt_tokens=4, max_response_tokens=4, overlong="drop")
ASKED, GOOD, BAD = "ab", "cd", "ef"


def chat(*contents):
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(path)]


def tokens(text):
    return tuple(TOKENIZER.encode(text))


def ended(text):
    return (*tokens(text), TOKENIZER.end_ids[0])


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED, "response": GOOD},
        {"prompt": ASKED, "completion": GOOD},
        {"prompt": chat(ASKED), "response": [{"role": "assistant", "content": GOOD}]},
        {"messages": chat(ASKED, GOOD)},
    ],
)
def test_a_demonstration_is_the_same_however_it_is_written(tmp_path, record):
    (row,) = load_demonstrations(written(tmp_path / "a.jsonl", record), TOKENIZER, KEYS, LIMITS).rows
    assert (row.asked.tokens, row.response, row.asked.ground_truth) == (tokens(ASKED), ended(GOOD), GOOD)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"chosen": chat(ASKED, GOOD), "rejected": chat(ASKED, BAD)},
        {"prompt": ASKED, "response_0": BAD, "response_1": GOOD, "better_response_id": 1},
    ],
)
def test_a_pair_is_the_same_however_it_is_written(tmp_path, record):
    files = written(tmp_path / "a.jsonl", {**record, "margin": 0.5})
    (row,) = load_preferences(files, TOKENIZER, KEYS, LIMITS, harm=False).rows
    assert (row.asked.tokens, row.chosen, row.rejected) == (tokens(ASKED), ended(GOOD), ended(BAD))
    assert (row.margin, row.chosen_harm, row.rejected_harm) == (0.5, 0.0, 0.0)


def test_pairs_of_costs_are_ordered_by_harm_and_bear_labels(tmp_path):
    numbered = {
        "prompt": ASKED,
        "response_0": GOOD,
        "response_1": BAD,
        "better_response_id": 1,
        "safer_response_id": 0,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
    }
    named = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "chosen_safe": True, "rejected_safe": False}
    for record in (numbered, named):
        files = written(tmp_path / "a.jsonl", record)
        (row,) = load_preferences(files, TOKENIZER, KEYS, LIMITS, harm=True).rows
        assert (row.chosen, row.chosen_harm, row.rejected_harm) == (ended(GOOD), -1.0, 1.0)
    files = written(tmp_path / "b.jsonl", named, {k: v for k, v in named.items() if k != "rejected_safe"})
    with pytest.raises(UserError, match=r"b\.jsonl:2: a cost model learns from labels.*'rejected_safe'"):
        load_preferences(files, TOKENIZER, KEYS, LIMITS, harm=True)


def test_rows_that_teach_nothing_are_dropped_and_counted(tmp_path):
    kept = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    files = written(
        tmp_path / "a.jsonl",
        kept,
        {**kept, "rejected": GOOD},
        {**kept, "rejected": " "},
        {**kept, "rejected": "aaaaaa"},
        {**kept, "prompt": "aaaaaa"},
    )
    account = load_preferences(files, TOKENIZER, KEYS, LIMITS, harm=False)
    assert (account.read, len(account.rows)) == (5, 1)
    assert sorted(account.dropped.values()) == [1, 1, 1, 1]
    strict = Limits(4, 4, "error")
    with pytest.raises(UserError, match=r"a\.jsonl:4: a response of 7 tokens"):
        load_preferences(files, TOKENIZER, KEYS, strict, harm=False)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": ASKED, "chosen": GOOD}, "no 'rejected' among"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "margin": "x"}, "'margin' is 'x'"),
        ({"chosen": chat(ASKED, GOOD), "rejected": chat(BAD, BAD)}, "differ in their last message alone"),
        ({"prompt": ASKED, "response_0": GOOD, "response_1": BAD}, "'better_response_id' is None"),
    ],
)
def test_a_malformed_pair_is_named_by_file_and_line(tmp_path, record, why):
    good = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    files = written(tmp_path / "a.jsonl", good, record)
    with pytest.raises(UserError, match=re.escape("a.jsonl:2: ") + f".*{why}"):
        load_preferences(files, TOKENIZER, KEYS, LIMITS, harm=False)


@pytest.mark.parametrize("label", [True, 1])
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED, "response": GOOD},
        {"prompt": ASKED, "completion": GOOD},
        {"prompt": chat(ASKED), "completion": [{"role": "assistant", "content": GOOD}]},
        {"messages": chat(ASKED, GOOD)},
    ],
)
def test_a_judged_response_is_the_same_however_it_is_written(tmp_path, record, label):
    files = written(tmp_path / "a.jsonl", {**record, "label": label}, {**record, "label": not label})
    (wanted,), (unwanted,) = load_judgements(files, TOKENIZER, KEYS, LIMITS).rows
    assert (wanted.asked.tokens, wanted.response, wanted.wanted) == (tokens(ASKED), ended(GOOD), True)
    assert unwanted.wanted is False


def test_a_pair_among_judged_responses_is_two_of_them_in_jsonl_and_parquet(tmp_path):
    records = [
        {"prompt": ASKED, "response": GOOD, "label": False},
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"prompt": ASKED, "chosen": GOOD, "rejected": GOOD},
    ]
    columns = ("prompt", "response", "label", "chosen", "rejected")
    table = pyarrow.table({name: [record.get(name) for record in records] for name in columns})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    files = written(tmp_path / "a.jsonl", *records)
    for given in (files, [str(tmp_path / "a.parquet")]):
        source = load_supervised_source(
            "judgements", "addition", given, (), TOKENIZER, KEYS, LIMITS, validation_rows=0, seed=0
        )
        assert [(row.response, row.wanted) for row in source.train] == [
            (ended(GOOD), False),
            (ended(GOOD), True),
            (ended(BAD), False),
        ]
        (report, _) = source.report
        assert "3 rows read, 2 kept" in report and "1 wanted responses, 2 unwanted ones" in report


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": ASKED, "response": GOOD, "label": "yes"}, "'label' is 'yes'; it must be true or false"),
        ({"prompt": ASKED, "response": GOOD}, "no 'label' and no pair among prompt, response"),
        ({"prompt": ASKED, "label": True}, "no 'completion' among"),
    ],
)
def test_a_malformed_judgement_is_named_by_file_and_line(tmp_path, record, why):
    files = written(tmp_path / "a.jsonl", {"prompt": ASKED, "response": GOOD, "label": True}, record)
    with pytest.raises(UserError, match=re.escape("a.jsonl:2: ") + f".*{why}"):
        load_judgements(files, TOKENIZER, KEYS, LIMITS)
