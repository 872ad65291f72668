import datetime
import decimal
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxflow.data.prompts import load_rows
from jaxflow.data.tokenizer import CharacterTokenizer
from jaxflow.types import PromptRow, UserError

TOKENIZER = CharacterTokenizer("0123456789+= \ud800")


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_parquet(path, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return str(path)


def load(*files, prompt_key="prompt", seed_key="", max_prompt_tokens=8, overlong="drop"):
    return load_rows(files, TOKENIZER, prompt_key, seed_key, max_prompt_tokens, overlong)


def test_a_row_arrives_with_all_its_fields(tmp_path):
    record = {"prompt": "1+2=", "ground_truth": "3", "data_source": "sums", "extra_info": {"index": 4}}
    loaded = load(write_jsonl(tmp_path / "a.jsonl", [record]))
    tokens = tuple(TOKENIZER.encode("1+2="))
    assert loaded.rows == (PromptRow("1+2=", tokens, "3", "sums", {"index": 4}),)


def test_what_is_left_out_is_the_files_stem_and_no_extra_info(tmp_path):
    (row,) = load(write_jsonl(tmp_path / "gsm.jsonl", [{"prompt": "1=", "ground_truth": 1}])).rows
    assert (row.data_source, row.extra_info, row.ground_truth) == ("gsm", {}, 1)


def test_verls_rows_are_understood(tmp_path):
    record = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "1+2="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "train", "index": 0},
    }
    (row,) = load(write_parquet(tmp_path / "train.parquet", [record])).rows
    assert row == PromptRow(
        "1+2=", tuple(TOKENIZER.encode("1+2=")), "3", "openai/gsm8k", {"split": "train", "index": 0}
    )


def test_what_parquet_files_hold_arrives_as_plain_json(tmp_path):
    """As pandas and datasets write verl's rows: arrays in lists of structs, numbers of all widths, nulls, times."""
    chat = [
        [{"role": "system", "content": "1"}, {"role": "user", "content": "2="}],
        [{"role": "user", "content": "3="}],
    ]
    struct = pyarrow.struct(
        [("target", pyarrow.list_(pyarrow.list_(pyarrow.int16()))), ("unit", pyarrow.string())]
    )
    truths = [
        {"target": [np.array([1, 2], np.int16), np.array([], np.int16)], "unit": None},
        {"target": None, "unit": "m"},
    ]
    day, instant = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    extra = pyarrow.map_(pyarrow.string(), pyarrow.decimal128(6, 2))
    table = pyarrow.table(
        {
            "data_source": pyarrow.array(["a", None]).dictionary_encode(),
            "prompt": chat,
            "ability": [None, "math"],
            "reward_model": pyarrow.array(
                [{"style": "rule", "ground_truth": truth} for truth in truths],
                pyarrow.struct([("style", pyarrow.string()), ("ground_truth", struct)]),
            ),
            "extra_info": pyarrow.array(
                [[("half", decimal.Decimal("0.50")), ("two", decimal.Decimal(2))], None], extra
            ),
            "images": [[b"x"], [b"y"]],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    first, second = load(str(tmp_path / "mine.parquet")).rows
    assert (first.prompt, first.data_source) == ("12=", "a")
    assert first.ground_truth == {"target": [[1, 2], []], "unit": None}
    assert first.extra_info == {"half": 0.5, "two": 2}
    assert (second.prompt, second.data_source, second.extra_info) == ("3=", "mine", {})
    assert second.ground_truth == {"target": None, "unit": "m"}
    times = [{"prompt": "1", "ground_truth": [day], "extra_info": {"at": instant}}]
    (row,) = load(write_parquet(tmp_path / "times.parquet", times)).rows
    assert (row.ground_truth, row.extra_info) == (["2026-01-02"], {"at": "2026-01-02T03:04:00+00:00"})
    assert json.loads(json.dumps([first.ground_truth, row.extra_info])) == [
        first.ground_truth,
        row.extra_info,
    ]


@pytest.mark.parametrize("key", ["ground_truth", "extra_info"])
def test_what_json_has_no_word_for_is_named_by_row(tmp_path, key):
    good = {"prompt": "1", "ground_truth": {"a": None}, "extra_info": {"a": None}}
    file = write_parquet(tmp_path / "a.parquet", [good, {**good, key: {"a": b"x"}}])
    with pytest.raises(UserError, match=re.escape(f"{file}:2: {key!r} holds a value of type bytes")):
        load(file)


def test_content_in_parts_is_text_where_all_parts_are(tmp_path):
    text, picture = {"type": "text", "text": "1+"}, {"type": "image", "image": "a.png"}
    rows = [{"prompt": [{"role": "user", "content": [text, text]}], "ground_truth": 1}]
    assert load(write_jsonl(tmp_path / "a.jsonl", rows)).rows[0].prompt == "1+1+"
    rows[0]["prompt"][0]["content"][1] = picture
    with pytest.raises(UserError, match=r"b\.jsonl:1: a message in 'prompt' is .*both text"):
        load(write_jsonl(tmp_path / "b.jsonl", rows))


def test_jsonl_and_parquet_give_the_same_rows(tmp_path):
    records = [
        {
            "prompt": [{"role": "user", "content": f"{i}+{i}="}],
            "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
            "data_source": "sums",
            "extra_info": {"index": i, "tags": ["a", "b"]},
        }
        for i in range(5)
    ]
    jsonl = load(write_jsonl(tmp_path / "a.jsonl", records))
    parquet = load(write_parquet(tmp_path / "a.parquet", records))
    assert jsonl == parquet
    assert len(jsonl.rows) == 5


def test_files_follow_one_another_and_blank_lines_are_no_rows(tmp_path):
    second = tmp_path / "b.jsonl"
    second.write_text('\n{"prompt": "2", "ground_truth": 0}\n\n')
    loaded = load(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "1", "ground_truth": 0}]), str(second))
    assert [row.prompt for row in loaded.rows] == ["1", "2"]
    assert loaded.report.account.read == 2


def test_the_report_counts_every_row_once_and_points_at_the_first(tmp_path):
    prompts = ["1+2=", "", "123456789", "  ", "4" * 8, "\ud800", None, "5" * 99]
    file = write_jsonl(tmp_path / "a.jsonl", [{"prompt": p, "ground_truth": 0} for p in prompts])
    report = load(file).report
    assert (report.account.read, len(report.account.rows)) == (8, 2)
    assert report.account.dropped == {
        "empty prompt": 3,
        "prompt longer than the limit": 2,
        "prompt that is not valid Unicode": 1,
    }
    assert report.account.first_dropped == {
        "empty prompt": f"{file}:2",
        "prompt longer than the limit": f"{file}:3",
        "prompt that is not valid Unicode": f"{file}:6",
    }
    lengths = report.prompt_tokens
    assert (lengths.minimum, lengths.mean, lengths.maximum) == (4, 6.0, 8)
    text = report.describe()
    assert "8 rows read, 2 kept" in text
    assert f"dropped 2: prompt longer than the limit (first: {file}:3)" in text
    assert "min 4, mean 6.0" in text


def test_percentiles_are_lengths_that_occur(tmp_path):
    records = [{"prompt": "1" * (1 + i), "ground_truth": 0} for i in range(101)]
    lengths = load(write_jsonl(tmp_path / "a.jsonl", records), max_prompt_tokens=101).report.prompt_tokens
    assert (lengths.median, lengths.percentile_95) == (51, 96)


def test_an_overlong_prompt_can_be_an_error(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"prompt": p, "ground_truth": 0} for p in ("1", "1" * 9)])
    with pytest.raises(UserError, match=re.escape(f"{file}:2: a prompt of 9 tokens, the limit is 8")):
        load(file, overlong="error")


def test_nothing_left_tells_the_counts_per_reason(tmp_path):
    records = [{"prompt": p, "ground_truth": 0} for p in ("", "1" * 9, "1" * 10)]
    with pytest.raises(UserError) as caught:
        load(write_jsonl(tmp_path / "a.jsonl", records))
    message = str(caught.value)
    assert "no prompt is left of 3 rows" in message
    assert "dropped 1: empty prompt" in message
    assert "dropped 2: prompt longer than the limit" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_an_empty_file_is_an_error(tmp_path, name):
    if name.endswith("jsonl"):
        file = write_jsonl(tmp_path / name, [])
    else:
        schema = pyarrow.schema([("prompt", pyarrow.string()), ("ground_truth", pyarrow.string())])
        pyarrow.parquet.write_table(schema.empty_table(), tmp_path / name)
        file = str(tmp_path / name)
    with pytest.raises(UserError, match="no prompt is left of 0 rows"):
        load(file)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"prompt": "1", ', "not a JSON object"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"prompt": "\xff"}', "not a JSON object in UTF-8"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"ground_truth": 1}', "no key 'prompt' among ground_truth"),
        (b'{"prompt": "1"}', "no ground truth"),
        (b'{"prompt": "1", "reward_model": {"style": "rule"}}', "no ground truth"),
        (b'{"prompt": 5, "ground_truth": 1}', "'prompt' is int"),
        (b'{"prompt": ["1"], "ground_truth": 1}', "a message in 'prompt'"),
        (b'{"prompt": [{"role": "user"}], "ground_truth": 1}', "a message in 'prompt'"),
        (b'{"prompt": "1", "ground_truth": 1, "extra_info": "x"}', "'extra_info' is 'x'"),
        (b'{"prompt": "1", "ground_truth": 1, "data_source": 7}', "'data_source' is 7"),
        (b'{"prompt": "x", "ground_truth": 1}', "character 'x'"),
        (
            b'{"prompt": "1", "ground_truth": ' + b"[" * 70 + b"]" * 70 + b"}",
            "'ground_truth' holds values nested more than 64 deep",
        ),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path, line, complaint):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "1", "ground_truth": 1}\n\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        load(str(file))
    assert str(caught.value).startswith(f"{file}:3: ")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_malformed_parquet_row_is_named_by_file_and_row(tmp_path):
    records = [{"prompt": "1", "ground_truth": "1"}, {"prompt": "1", "ground_truth": None}]
    file = write_parquet(tmp_path / "a.parquet", records)
    with pytest.raises(UserError, match=re.escape(f"{file}:2: no ground truth")):
        load(file)


def test_a_missing_parquet_column_is_named_with_those_there_are(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", [{"question": "1", "answer": "1"}])
    with pytest.raises(UserError, match="no column 'prompt' among question, answer"):
        load(file)


def test_the_prompt_key_can_be_another(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", [{"question": "1", "ground_truth": "1"}])
    assert load(file, prompt_key="question").rows[0].prompt == "1"


def test_a_damaged_parquet_file_is_named(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=re.escape(str(file))):
        load(str(file))


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.parquet", "rows.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(UserError, match=name):
        load(str(tmp_path / name))


def test_a_row_s_seed_is_read_from_its_column_and_has_to_be_one(tmp_path):
    records = [{"prompt": "1=", "ground_truth": 1, "seed": 7}, {"prompt": "2=", "ground_truth": 2}]
    file = write_jsonl(tmp_path / "a.jsonl", records)
    assert [row.seed for row in load(file, seed_key="seed").rows] == [7, -1]
    assert [row.seed for row in load(file).rows] == [-1, -1]
    for wrong in (-1, 1 << 30, 0.5, True):
        file = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "1=", "ground_truth": 1, "seed": wrong}])
        with pytest.raises(UserError, match=r"b\.jsonl:1: 'seed'"):
            load(file, seed_key="seed")
