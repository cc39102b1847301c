"""Requests: the format each matrix gets from bits, a target and patterns, and the key they make.

In: requests and the Plan of a tiny checkpoint. Out: formats, fallbacks, keys, refusals.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import DOWN, EMBEDDING, HEAD, QUERY, make_tensors, write_checkpoint

from crumb.architectures.plan import Plan
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.formats.catalog import ZeroKind
from crumb.requests.quantize_request import QuantizeRequest, choose, matches
from crumb.solve.problem import AS_PUBLISHED, Method, SolveSettings

PLAIN = QuantizeRequest("model", Path("out"), bits=3, group_size=32)
TO_Q3_K = QuantizeRequest("model", Path("out"), target="gguf:q3_k")
TO_GPTQ = QuantizeRequest("model", Path("out"), bits=4, group_size=32, target="gptq")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Inputs of 256, 96 (down) and 64 (output), untied."""
    tensors = make_tensors(tied=False, hidden=256)
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("wide"), tensors)).plan


def names_of(plan: Plan, request: QuantizeRequest) -> dict[str, str]:
    return {name: format.name for name, format in choose(plan, request).formats.items()}


def test_a_key_of_version_0_2_is_still_the_same() -> None:
    """Finished directories and workspaces of that version belong to the same job."""
    as_then = SolveSettings(token_power=0.0, refinements=0, asymmetric=False)
    assert replace(PLAIN, embedding=8, head=8, solve=as_then).key() == {
        "bits": 3,
        "group_size": 32,
        "zero": "fixed",
        "embedding_bits": 8,
        "head_bits": 8,
        "solve": {
            "method": "gptq",
            "scales": "search",
            "damping": None,
            "act_order": True,
            "static_groups": True,
            "refits": 3,
            "block_columns": 128,
            "strict": False,
        },
    }


def test_what_was_asked_for_is_in_the_key() -> None:
    request = replace(TO_Q3_K, embedding="q6_k", head="float", tensor=(("down", "q4_0"),))
    key = request.key()
    assert (key["bits"], key["group_size"], key["zero"]) == (3, 16, "fixed")
    assert key["target"] == "gguf:q3_k"
    assert (key["embedding_type"], key["head_type"]) == ("q6_k", "float")
    assert key["tensors"] == [["down", "q4_0"]]
    assert key["solve"]["solved_embedding_bits"] == 6
    assert "lowest_zero_point" not in key["solve"]
    assert TO_GPTQ.key()["solve"]["lowest_zero_point"] == 1


def test_without_a_target_the_solver_is_asked_nothing_more() -> None:
    assert PLAIN.settings == PLAIN.solve == SolveSettings()
    assert asdict(TO_GPTQ.settings) == asdict(SolveSettings()) | {"lowest_zero_point": 1}


def test_an_embedding_of_few_bits_is_solved_and_its_job_says_so() -> None:
    for bits, solved in ((8, False), (6, True), (2, True)):
        request = replace(PLAIN, embedding=bits)
        format = request.format_of("embedding")
        assert format is not None
        assert request.settings.solves_embedding(format) is solved
        assert ("solved_embedding_bits" in request.key()["solve"]) is solved
        assert not AS_PUBLISHED.solves_embedding(format)
        assert not replace(request.settings, method=Method.ROUND).solves_embedding(format)


def test_a_gguf_target_has_its_type_in_blocks_and_q8_0_outside(plan: Plan) -> None:
    formats = names_of(plan, TO_Q3_K)
    assert formats[QUERY] == "q3_k-g16-fixed"
    assert formats[EMBEDDING] == formats[HEAD] == "int8-g32-fixed"


def test_widths_without_super_blocks_fall_back_and_are_named(plan: Plan) -> None:
    choice = choose(plan, TO_Q3_K)
    fallen = {name for name in choice.formats if "down_proj" in name or "o_proj" in name}
    assert set(choice.fallbacks) == fallen
    assert len(fallen) == 6
    assert choice.formats[DOWN].name == "int4-g32-fixed"
    assert choice.fallbacks[DOWN] == "q4_0: 96 inputs are not in whole blocks of q3_k"


def test_a_fallback_is_refused_in_strict_mode(plan: Plan) -> None:
    strict = replace(TO_Q3_K, solve=SolveSettings(strict=True))
    with pytest.raises(UsageError, match=r"o_proj\.weight: a fallback is needed"):
        choose(plan, strict)


def test_a_matrix_that_no_type_holds_is_left_float(tmp_path: Path) -> None:
    tensors = make_tensors(hidden=256, feed_forward=100)
    odd = open_checkpoint(write_checkpoint(tmp_path / "odd", tensors)).plan
    choice = choose(odd, TO_Q3_K)
    assert DOWN not in choice.formats
    assert choice.fallbacks[DOWN] == "left float: 100 inputs are not in whole blocks of q3_k"


def test_embedding_and_head_take_names(plan: Plan) -> None:
    request = replace(TO_Q3_K, embedding="Q6_K", head="f16")
    formats = names_of(plan, request)
    assert formats[EMBEDDING] == "q6_k-g16-fixed"
    assert HEAD not in formats
    assert choose(plan, request).fallbacks.keys().isdisjoint({HEAD, EMBEDDING})
    plain = names_of(plan, replace(PLAIN, embedding="q4_k", head="int2-row-minimum"))
    assert (plain[EMBEDDING], plain[HEAD]) == ("q4_k-g32-minimum", "int2-row-minimum")


@pytest.mark.parametrize("request_", [PLAIN, TO_Q3_K], ids=["plain", "gguf"])
def test_the_last_pattern_that_matches_counts(request_: QuantizeRequest, plan: Plan) -> None:
    patterns = (("_proj", "q8_0"), ("*.1.*.q_proj.weight", "q2_k"), ("down", "float"))
    formats = names_of(plan, replace(request_, tensor=patterns))
    assert formats[QUERY] == "q2_k-g16-minimum"
    assert formats[QUERY.replace(".1.", ".2.")] == "int8-g32-fixed"
    assert DOWN not in formats


def test_a_pattern_also_reaches_embedding_and_head(plan: Plan) -> None:
    formats = names_of(plan, replace(TO_Q3_K, tensor=(("lm_head", "q6_k"), ("embed", "q2_k"))))
    assert (formats[HEAD], formats[EMBEDDING]) == ("q6_k-g16-fixed", "q2_k-g16-minimum")


@pytest.mark.parametrize(
    ("pattern", "name", "hit"),
    [
        ("down", "a.down_proj.weight", True),
        ("down*", "a.down_proj.weight", False),
        ("*down*", "a.down_proj.weight", True),
        ("a.[01].b", "a.1.b", True),
        ("a.?", "a.1.b", False),
        ("DOWN", "a.down_proj.weight", False),
    ],
)
def test_a_pattern_is_a_part_of_the_name_or_a_glob_of_all_of_it(
    pattern: str, name: str, hit: bool
) -> None:
    assert matches(pattern, name) is hit


def test_a_pattern_that_matches_nothing_is_refused(plan: Plan) -> None:
    with pytest.raises(UsageError, match="dwon: no matrix has such a name"):
        choose(plan, replace(PLAIN, tensor=(("dwon", "q8_0"), ("down", "q8_0"))))


def test_a_type_asked_for_by_name_alone_has_no_fallback(plan: Plan) -> None:
    """Only a target says what takes its place."""
    with pytest.raises(UsageError, match=r"down_proj\.weight: q4_k needs inputs in whole"):
        choose(plan, replace(PLAIN, tensor=(("down", "q4_k"),)))


def test_gptq_leaves_embedding_and_head_float(plan: Plan) -> None:
    request = replace(TO_GPTQ, zero=ZeroKind.VARIABLE, tensor=(("q_proj", "int8-row-fixed"),))
    formats = names_of(plan, request)
    assert formats.keys() == {linear.weight for linear in plan.linears()} - {HEAD}
    assert formats[DOWN] == "int4-g32-variable"
    assert formats[QUERY] == "int8-row-fixed"
    with pytest.raises(UsageError, match=r"lm_head\.weight: a GPTQ file keeps the head float"):
        choose(plan, replace(TO_GPTQ, tensor=(("lm_head", "int4-g32-fixed"),)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bits": None}, "blocks: nothing says how many bits"),
        ({"target": "ggml"}, "target: not a target"),
        ({"target": "gguf:q4_k"}, "blocks: the bits contradict the target"),
        ({"embedding": "q9"}, "embedding: neither a GGUF type"),
        ({"tensor": (("x", "int9-g32-fixed"),)}, "x: neither a GGUF type"),
        ({"target": "gptq", "head": "q8_0"}, "head: a GPTQ file keeps the head float"),
        ({"target": "gguf:q3_k", "head": "int3-g32-fixed"}, "head: no GGUF type holds"),
        ({"target": "gguf:q3_k", "tensor": (("x", "int3-g32-fixed"),)}, "no GGUF type holds"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_is_refused_when_it_is_made(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        replace(PLAIN, **wrong)


def test_groups_fitted_on_the_way_are_refused_before_any_work(plan: Plan) -> None:
    with pytest.raises(UsageError, match=r"q_proj\.weight: the groups of a super-block"):
        choose(plan, replace(TO_Q3_K, solve=AS_PUBLISHED))
    assert choose(plan, replace(TO_Q3_K, solve=replace(AS_PUBLISHED, method=Method.ROUND)))
