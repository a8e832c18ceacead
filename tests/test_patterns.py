"""Patterns of names: what matches, and what is said of a pattern that matches nothing."""

from distill_system.patterns import idle_patterns, matches

NAMES = ["layer.0.query.weight", "layer.1.query.weight", "layer.1.output.weight"]


def test_matches():
    assert matches(NAMES[0], ["nothing", "*.0.*"])
    assert not matches(NAMES[0], ["*.1.*"])
    assert not matches(NAMES[0], [])


def test_a_pattern_that_matches_nothing_is_told_with_what_is_close():
    found = idle_patterns(NAMES, ["*query*", "*layer.0.quary.weight*"], ["*output*", "zzz"], "phases.p")
    assert [problem.key for problem in found] == ["phases.p.include[1]", "phases.p.exclude[1]"]
    assert found[0].message.endswith("matches none of the 3 matrices (did you mean 'layer.0.query.weight'?)")
    assert found[1].message.endswith("(such as layer.0.query.weight)")


def test_where_all_match_nothing_is_told():
    assert idle_patterns(NAMES, ["*"], ["*.0.*"], "key") == []
    assert idle_patterns([], ["*"], [], "key")[0].message.endswith("none of the 0 matrices")
