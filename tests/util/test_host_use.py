from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mirror.util.host_use import MAX_INTERVALS, MAX_PAUSES, HostUseRecorder, Pause, Quota


@given(st.lists(st.floats(0, 1e6)))
def test_every_request_is_counted_in_the_interval_of_its_time(times: list[float]) -> None:
    recorder = HostUseRecorder()
    for at in times:
        recorder.add_request(at)
    use = recorder.result()
    expected = [0] * len(use.requests)
    for at in times:
        expected[int(at / use.interval)] += 1
    assert expected == use.requests
    assert len(use.requests) <= MAX_INTERVALS


def test_a_pause_that_begins_in_the_last_one_extends_it() -> None:
    recorder = HostUseRecorder()
    for start, seconds in ((1.0, 10.0), (5.0, 2.0), (9.0, 12.0), (30.0, 1.0)):
        recorder.add_pause(start, seconds)
    assert [Pause(1.0, 20.0), Pause(30.0, 1.0)] == recorder.result().pauses


def test_the_number_of_pauses_is_bounded_and_the_last_one_covers_all_later_ones() -> None:
    recorder = HostUseRecorder()
    for number in range(MAX_PAUSES + 3):
        recorder.add_pause(number * 10.0, 1.0)
    pauses = recorder.result().pauses
    assert (MAX_PAUSES, Pause(990.0, 31.0)) == (len(pauses), pauses[-1])


def test_the_quota_is_that_of_the_last_response_that_states_one() -> None:
    recorder = HostUseRecorder()
    for status, quota in ((200, Quota(5, 100)), (200, Quota(4, 100)), (404, None)):
        recorder.add_response(status, quota)
    use = recorder.result()
    assert (Quota(4, 100), {"200": 2, "404": 1}) == (use.quota, use.statuses)
