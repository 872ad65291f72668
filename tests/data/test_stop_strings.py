"""A response ends with the very token that completes a stop string in its text, whatever cuts the text into tokens."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxflow.data.stop_strings import stop_transitions
from jaxflow.data.token_texts import TokenTexts
from jaxflow.data.tokenizer import CharacterTokenizer, HuggingFaceTokenizer
from jaxflow.types import UserError

CORPUS = [
    "the end of the answer: 42\n\nThe END",
    "naïve café déjà vu — 你好，世界 🙂🙃 answer",
    "aabaab aabaabb  end",
]
STOPS = ("the", "aab", "abaab", "\n\n", "好，", "🙃", " end", "é d")


def saved(directory, tokenizer, **special):
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return HuggingFaceTokenizer(directory)


def byte_level(directory):
    """GPT-2's kind, with an added token that is not special and one that is."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens(["<the end>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return saved(directory, tokenizer)


def with_byte_fallback(directory):
    """Llama 2's kind: spaces are ▁, unknown characters are bytes, one space is dropped at the start."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [
        "▁",
        "▁▁",
        "▁the",
        "the",
        "▁end",
        "a",
        "b",
        "ab",
        "▁a",
        "aab",
        "好",
        "é",
        "n",
        "d",
        "t",
        "he",
        "e",
    ]
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return saved(directory, tokenizer, unk_token="<unk>")


def unigram(directory):
    """T5's kind: every space at the start is dropped."""
    pieces = [
        "<unk>",
        "</s>",
        "▁",
        "▁▁",
        "▁the",
        "the",
        "▁end",
        "a",
        "b",
        "ab",
        "▁a",
        "aab",
        "好",
        "，",
        "é",
        "d",
        "t",
    ]
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return saved(directory, tokenizer, unk_token="<unk>")


def characters(directory):
    return CharacterTokenizer("abdehnt é🙃好，\n")


def first_stop(table, tokens):
    """The first token within which the automaton completes a string."""
    state = 0
    for place, token in enumerate(tokens):
        state = int(table[state, token])
        if state < 0:
            return place
    return None


@pytest.mark.parametrize("make", [byte_level, with_byte_fallback, unigram, characters])
def test_the_automaton_stops_where_the_decoded_text_first_holds_a_string(make, tmp_path):
    tokenizer = make(tmp_path)
    table = stop_transitions(STOPS, tokenizer.token_texts())
    assert table.shape[1] == tokenizer.vocabulary_size and table.dtype == np.int16
    generator = np.random.default_rng(0)
    texts = tokenizer.token_texts().inside
    letters = set("".join(STOPS))
    telling = np.flatnonzero([text and set(text.decode(errors="replace")) <= letters for text in texts])
    everything = np.arange(tokenizer.vocabulary_size)
    stopped = 0
    for trial in range(300):
        tokens = generator.choice(telling if trial % 3 else everything, 14)
        found = first_stop(table, tokens)
        holds = [any(stop in tokenizer.decode(tokens[: n + 1]) for stop in STOPS) for n in range(len(tokens))]
        assert found == (holds.index(True) if any(holds) else None), [texts[token] for token in tokens]
        stopped += found is not None
    assert 30 < stopped < 300


def test_text_that_the_tokenizer_made_itself_is_found_where_it_ends(tmp_path):
    tokenizer = byte_level(tmp_path)
    table = stop_transitions(("世界",), tokenizer.token_texts())
    tokens = tokenizer.encode("naïve 你好，世界 🙂")
    place = first_stop(table, tokens)
    assert "世界" in tokenizer.decode(tokens[: place + 1]) and "世界" not in tokenizer.decode(tokens[:place])


def test_a_string_within_one_token_is_noticed_and_the_search_goes_on_behind_it():
    texts = (b"", b"xaby", b"a", b"b", b"aba")
    table = stop_transitions(("ab",), TokenTexts(texts, texts))
    assert table.shape == (3, 5)  # nothing said, nothing matched, "a"
    np.testing.assert_array_equal(table[0], [0, ~1, 2, 1, ~2])
    np.testing.assert_array_equal(table[1], [1, ~1, 2, 1, ~2])
    np.testing.assert_array_equal(table[2], [2, ~1, 2, ~1, ~2])


def test_a_decoder_whose_tokens_lean_on_each_other_is_refused_by_name(tmp_path):
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab={"</s>": 0, "a": 1, "##b": 2}, unk_token="</s>"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match=r"step WordPiece.*rollout\.stop_token_ids"):
        saved(tmp_path, tokenizer).token_texts()
