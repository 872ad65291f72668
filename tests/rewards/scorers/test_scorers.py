"""What each built-in scorer takes for a right answer, and which of them judges a data source."""

import pytest

from jaxflow.rewards.scorers import KNOWN_SOURCES, SCORERS, TEXT_SCORERS, scorer_of


def score(name, response, ground_truth):
    result = TEXT_SCORERS[name]("source", response, ground_truth, {})
    return result["score"] if isinstance(result, dict) else result


@pytest.mark.parametrize(
    ("response", "ground_truth", "expected"),
    [
        ("85", "85", 1.0),
        ("85", 85, 1.0),
        (" 85\n", "85", 1.0),
        ("085", "85", 0.0),
        ("85 ", "8 5", 0.0),
        ("", "85", 0.0),
    ],
)
def test_exact_match_compares_whole_answers(response, ground_truth, expected):
    assert score("exact_match", response, ground_truth) == expected


@pytest.mark.parametrize(
    ("response", "expected"), [("2 0 254", 1.0), ("1 3", 0.0), ("0 1 2 3 4 6 8 10", 0.75), ("", 0.0)]
)
def test_even_tokens_is_the_share_of_even_ids(response, expected):
    assert score("even_tokens", response, "2 4") == expected


def test_wishes_are_paid_for_help_and_tell_help_and_harm_beside_it():
    told = TEXT_SCORERS["wishes"]("wishes", "abga", "abg", {})
    assert told == pytest.approx({"score": 5 / 6, "acc": 5 / 6, "help": 5 / 6, "harm": 0.5})
    cost = TEXT_SCORERS["wishes_cost"]("wishes", "abga", "abg", {})
    assert cost == {"score": 0.5, "acc": 0.0, "safe": 0.0}


@pytest.mark.parametrize(
    ("response", "strict", "flexible"),
    [
        ("She has 5 + 13 = 18 eggs.\n#### 18", 1.0, 1.0),
        ("#### 18", 1.0, 1.0),
        ("#### 17\nno: #### 18", 1.0, 1.0),
        ("#### 18 and then 20", 1.0, 0.0),
        ("#### $18", 0.0, 1.0),
        ("####18", 0.0, 1.0),
        ("The answer is 18.", 0.0, 1.0),
        ("The answer is 18...", 0.0, 1.0),
        ("#### -18", 0.0, 0.0),
        ("#### 18" + " word" * 70, 0.0, 0.0),
        ("eighteen", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_gsm8k_reads_the_end_strictly_or_flexibly(response, strict, flexible):
    assert (score("gsm8k", response, "18"), score("gsm8k_flexible", response, "18")) == (strict, flexible)


def test_gsm8k_ignores_commas_in_thousands_on_both_sides():
    assert score("gsm8k", "#### 1,234,000", "1234000") == score("gsm8k", "#### 1234000", "1,234,000") == 1.0


SAME = [
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac{1}{2}", "1/2"),
    ("1,234", "1234"),
    ("5", r"$5$"),
    ("5", "x = 5"),
    ("5", r"5\text{ cm}"),
    ("5", "5 units"),
    ("90", r"90^\circ"),
    ("90", r"90^{\circ}"),
    ("50", r"50\%"),
    (r"(1,2)", r"\left( 1, 2 \right)"),
    (r"\sqrt{2}", r"\sqrt2"),
    ("0.5", ".5"),
    ("3", "3.0"),
    (r"\text{Tuesday}", "Tuesday"),
    ("12", r"12\text{ square feet}."),
]
DIFFERENT = [("5", "-5"), ("12", "1.2"), (r"\frac{1}{2}", r"\frac{2}{1}"), ("(1,2)", "(2,1)"), ("x", "y")]


@pytest.mark.parametrize(("truth", "answer"), SAME)
def test_one_answer_written_in_two_ways_is_one_answer(truth, answer):
    assert score("math_string", rf"so \boxed{{{answer}}} it is", truth) == 1.0
    assert score("math_dapo", f"thus\nAnswer: {answer}", truth) == 1.0


@pytest.mark.parametrize(("truth", "answer"), DIFFERENT)
def test_two_answers_stay_two(truth, answer):
    assert score("math_string", rf"so \boxed{{{answer}}}", truth) == 0.0
    assert score("math_dapo", f"Answer: {answer}", truth) == -1.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"first \boxed{1}, no, \boxed{\frac{a}{b}}", 1.0),
        (r"\fbox{\frac{a}{b}}", 1.0),
        (r"\boxed{\frac{a}{b}} or \boxed{2}", 0.0),
        (r"\boxed{\frac{a}{b}", 0.0),
        (r"\boxed", 0.0),
        (r"\frac{a}{b}", 0.0),
        ("\\boxed{" + "{" * 100_000, 0.0),
    ],
)
def test_the_last_whole_box_counts(response, expected):
    assert score("math_string", response, r"\frac{a}{b}") == expected


def test_a_ground_truth_may_be_a_whole_solution():
    assert score("math_string", r"\boxed{7}", r"We find $x = 7$, that is \boxed{7}.") == 1.0


def test_dapo_reads_the_last_announcement_near_the_end():
    assert score("math_dapo", "Answer: 3\nno. ANSWER : $7$", "7") == 1.0
    assert score("math_dapo", r"Answer: \boxed{7}", 7) == 1.0
    assert score("math_dapo", "Answer: 7" + " word" * 70, "7") == -1.0
    assert score("math_dapo", "seven", "7") == -1.0


@pytest.mark.parametrize("name", TEXT_SCORERS)
def test_a_ground_truth_that_is_no_text_is_refused_whatever_the_response(name):
    with pytest.raises(TypeError, match="text or a number as ground truth, not dict"):
        score(name, "", {"target": 1})


@pytest.mark.parametrize(
    ("source", "scorer"),
    [
        ("openai/gsm8k", "gsm8k"),
        ("lighteval/MATH", "math_verify"),
        ("DigitalLearningGmbH/MATH-lighteval", "math_verify"),
        ("HuggingFaceH4/MATH-500", "math_verify"),
        ("numina_olympiads", "math_verify"),
        ("math_dapo", "math_dapo"),
        ("aime24", "math_dapo"),
        ("aime_2025", "math_dapo"),
        ("gsm8k-of-mine", None),
    ],
)
def test_verls_data_sources_have_their_scorers(source, scorer):
    assert scorer_of(source) == scorer
    assert all(scorer_of(known.rstrip("…")) in SCORERS for known in KNOWN_SOURCES)
