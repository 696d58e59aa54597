"""Requests to stop: counted, handed back, and nothing outside of the main thread."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pixelbert.training.signals import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_is_noted_and_the_second_stops(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stop_requests() as asked:
        assert asked == []
        os.kill(os.getpid(), number)
        assert asked == [number]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_other_threads_hear_nothing() -> None:
    heard: list[list[int]] = []

    def listen() -> None:
        with stop_requests() as asked:
            heard.append(asked)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [[]]
    assert signal.getsignal(signal.SIGINT) is before
