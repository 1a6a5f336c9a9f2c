"""Damaged data folders and odd values of keys, at random: never a raw error, never a run that does not end."""

import pytest
from fuzz import data_folders, keys
from fuzz.runs import FINE

CHUNK = 25
CHUNKS = range(2)  # 50 cases of each; `python tools/fuzz.py` tries as many as one likes


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("mode", [data_folders, keys], ids=["data", "keys"])
def test_random_mistakes(mode, chunk):
    cases = [mode.run_case(number) for number in range(chunk * CHUNK, (chunk + 1) * CHUNK)]
    failed = [case for case in cases if case.failure]
    assert not failed, "\n".join(f"{case.number}: {case.what}: {case.failure}" for case in failed)
    outcomes = {case.outcome for case in cases}
    assert FINE in outcomes and len(outcomes) > 1, "some are harmless, some are not"
